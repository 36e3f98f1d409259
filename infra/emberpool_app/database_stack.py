"""The database of `database=new`: a small RDS PostgreSQL to try emberpool with."""

from __future__ import annotations

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_rds as rds
from constructs import Construct

from emberpool_cdk import PoolDatabase, TunedParameterGroup
from emberpool_cdk.explained_findings import explain

ENGINE_VERSION = rds.PostgresEngineVersion.VER_17_9
# What cdk-nag finds in the instance although it is meant so.
EXPLAINED = {
    "AwsSolutions-RDS3": "A database to try things out with: a second zone doubles its price. Give yours one.",
    "AwsSolutions-RDS10": "A database to try things out with: `cdk destroy` leaves nothing that costs money.",
    "AwsSolutions-RDS11": "Open to the pool's tasks only, in subnets without a way in: another port hides nothing.",
}


class DatabaseStack(Stack):
    """One encrypted RDS instance that accepts TLS only, with a `max_connections` that is known here.

    The pool logs in as the instance's master user, to have a first query without a manual step. In production
    give it a role of its own that can log in and use the application's schema only, with its own secret.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        vpc: ec2.IVpc,
        subnets: ec2.SubnetSelection,
        max_connections: int,
        database_name: str,
        **stack: Any,
    ) -> None:
        super().__init__(scope, construct_id, **stack)
        engine = rds.DatabaseInstanceEngine.postgres(version=ENGINE_VERSION)
        # Nobody but the pool comes in, which adds its own rule, and the database calls nobody.
        group = ec2.SecurityGroup(
            self, "SecurityGroup", vpc=vpc, allow_all_outbound=False, description="emberpool: the database"
        )
        instance = rds.DatabaseInstance(
            self,
            "Instance",
            engine=engine,
            instance_type=ec2.InstanceType.of(ec2.InstanceClass.BURSTABLE4_GRAVITON, ec2.InstanceSize.MICRO),
            vpc=vpc,
            vpc_subnets=subnets,
            # RDS makes the secret and rotates it every seven days; the tasks follow.
            credentials=rds.Credentials.from_username("emberpool_owner"),
            manage_master_user_password=True,
            database_name=database_name,
            allocated_storage=20,
            storage_encrypted=True,
            parameter_group=TunedParameterGroup(self, "Parameters", engine=engine, max_connections=max_connections),
            publicly_accessible=False,
            security_groups=[group],
            # `cdk destroy` leaves nothing that costs money: this database is for trying things out.
            removal_policy=RemovalPolicy.DESTROY,
            deletion_protection=False,
            backup_retention=Duration.days(1),
            delete_automated_backups=True,
        )
        for rule, reason in EXPLAINED.items():
            explain(instance, rule, reason)
        self.database = PoolDatabase.from_instance(instance)
