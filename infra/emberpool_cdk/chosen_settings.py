"""What a user chooses of a runtime's settings beside what the constructs write: names checked, as variables."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

Chosen = Mapping[str, str | float]


def chosen_variables(
    settings: Chosen, names: Sequence[str], written: Mapping[str, str], variable: Callable[[str], str]
) -> dict[str, str]:
    """Return the variables of `settings`, whose keys must be among `names` and none of `written`.

    `written` are the settings that a construct writes or that make no sense on AWS, with the reason. Raises ValueError.
    """
    for name in settings:
        if name in written:
            raise ValueError(f"settings must not have {name}: {written[name]}")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise ValueError(f"settings has the unknown name {name!r}: {hint}")
    return {
        variable(name): f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()
    }
