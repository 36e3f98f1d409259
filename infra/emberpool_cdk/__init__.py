"""Constructs for your own CDK app: the pool, its database, the layer and the proof of the connection budget."""

from emberpool_cdk.attachment import FunctionNotAttachable
from emberpool_cdk.connection_budget import BudgetExceeded, ConnectionBudget
from emberpool_cdk.pool_client import PoolClient
from emberpool_cdk.pool_database import PoolDatabase
from emberpool_cdk.pool_endpoints import add_pool_endpoints
from emberpool_cdk.pool_monitoring import PoolMonitoring
from emberpool_cdk.pool_proxy import PoolProxy
from emberpool_cdk.proxy_image import ProxyContext
from emberpool_cdk.source_files import SourceMissing
from emberpool_cdk.tuned_parameter_group import TunedParameterGroup
from emberpool_cdk.warm_connection_layer import LayerBuildFailed, LayerUnsupported, PublishedLayer, WarmConnectionLayer

__all__ = [
    "BudgetExceeded",
    "ConnectionBudget",
    "FunctionNotAttachable",
    "LayerBuildFailed",
    "LayerUnsupported",
    "PoolClient",
    "PoolDatabase",
    "PoolMonitoring",
    "PoolProxy",
    "ProxyContext",
    "PublishedLayer",
    "SourceMissing",
    "TunedParameterGroup",
    "WarmConnectionLayer",
    "add_pool_endpoints",
]
