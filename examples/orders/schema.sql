-- Running this again keeps the orders and fills the stock up.

create table if not exists products (
    id          integer primary key,
    name        text    not null,
    price_cents integer not null check (price_cents > 0),
    in_stock    integer not null check (in_stock >= 0)
);

create table if not exists orders (
    id             bigint generated always as identity primary key,
    customer_email text        not null,
    product_id     integer     not null references products (id),
    quantity       integer     not null check (quantity > 0),
    total_cents    integer     not null,
    payment_id     text,
    placed_at      timestamptz not null default now()
);

insert into products (id, name, price_cents, in_stock)
select n, 'Product ' || n, 100 + n * 5, 1000000
from generate_series(1, 500) as n
on conflict (id) do update set in_stock = excluded.in_stock;
