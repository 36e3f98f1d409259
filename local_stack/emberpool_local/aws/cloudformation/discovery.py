"""Cloud Map: private namespaces and the services in them."""

from __future__ import annotations

from typing import Any

from emberpool_local.aws.cloudformation.calls import Properties, call, client
from emberpool_local.aws.cloudformation.resource import Made, register

NAMESPACE = "AWS::ServiceDiscovery::PrivateDnsNamespace"
SERVICE = "AWS::ServiceDiscovery::Service"
API = "servicediscovery"


def register_types() -> None:
    """Teach moto the types of Cloud Map."""
    register(NAMESPACE, _create_namespace, _delete_namespace)
    register(SERVICE, _create_service, _delete_service, name_property="Name")


def _create_namespace(region: str, properties: Properties, _: str) -> Made:
    call(region, NAMESPACE, API, "create_private_dns_namespace", properties)
    (made,) = [
        each for each in client(API, region).list_namespaces()["Namespaces"] if each["Name"] == properties["Name"]
    ]
    return Made(made["Id"], {"Id": made["Id"], "Arn": made["Arn"]})


def _delete_namespace(region: str, namespace: str, _: Properties) -> None:
    client(API, region).delete_namespace(Id=namespace)


def _create_service(region: str, properties: Properties, name: str) -> Made:
    made: dict[str, Any] = call(region, SERVICE, API, "create_service", {"Name": name, **properties})["Service"]
    return Made(made["Id"], {"Id": made["Id"], "Arn": made["Arn"], "Name": made["Name"]})


def _delete_service(region: str, service: str, _: Properties) -> None:
    client(API, region).delete_service(Id=service)
