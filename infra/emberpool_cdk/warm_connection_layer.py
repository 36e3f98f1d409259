"""The Lambda layer: `emberpool` and psycopg for one architecture and Python version, built without docker."""

from __future__ import annotations

from typing import cast

import jsii
from aws_cdk import Annotations, AssetHashType, BundlingOptions, ILocalBundling, Stack
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from emberpool_cdk.layer_build import LayerBuild, LayerBuildFailed, LayerUnsupported

__all__ = ["LayerBuildFailed", "LayerUnsupported", "PublishedLayer", "WarmConnectionLayer"]


class WarmConnectionLayer(lambda_.LayerVersion):
    """A layer version with `emberpool` and psycopg.

    Compiled bytecode halves the imports' share of a cold start. A Python of `runtime`'s minor version compiles it; when
    there is none where the app is synthesized, it is left out with a warning (Lambda then compiles at each cold start).

    `parameter_name` publishes the ARN of the newest version in an SSM parameter, for functions of other stacks: see
    `from_parameter`. An ARN that another stack imports could never be replaced: CloudFormation keeps an export as long
    as somebody uses it.

    Raises LayerUnsupported for a runtime or architecture without wheels, LayerBuildFailed when pip fails.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        architecture: lambda_.Architecture | None = None,
        runtime: lambda_.Runtime | None = None,
        parameter_name: str | None = None,
    ) -> None:
        architecture = architecture or lambda_.Architecture.ARM_64
        runtime = runtime or lambda_.Runtime.PYTHON_3_13
        self.architecture_name = architecture.name
        self.runtime_name = runtime.name
        build = LayerBuild(architecture=architecture.name, runtime=runtime.name)
        bundling = _LocalBundling(build)
        try:
            super().__init__(
                scope,
                construct_id,
                code=_code(build, runtime, bundling),
                compatible_architectures=[architecture],
                compatible_runtimes=[runtime],
                description=f"emberpool: one warm PostgreSQL connection ({runtime.name}, {architecture.name})",
            )
        except RuntimeError:
            if bundling.failure is not None:
                raise bundling.failure from None
            raise
        if build.warning is not None and Stack.of(self).bundling_required:
            Annotations.of(self).add_warning_v2("emberpool:layer-without-bytecode", build.warning)
        self.parameter = self._published(parameter_name) if parameter_name else None

    @property
    def layer_version(self) -> lambda_.ILayerVersion:
        """What `function.add_layers` takes: this construct itself."""
        return self

    def _published(self, parameter_name: str) -> ssm.StringParameter:
        return ssm.StringParameter(
            self,
            "Parameter",
            parameter_name=parameter_name,
            string_value=self.layer_version_arn,
            description=f"ARN of emberpool's newest layer ({self.runtime_name}, {self.architecture_name})",
        )

    @classmethod
    def from_parameter(
        cls,
        scope: Construct,
        construct_id: str,
        *,
        parameter_name: str,
        architecture: lambda_.Architecture | None = None,
        runtime: lambda_.Runtime | None = None,
    ) -> PublishedLayer:
        """Return the layer that another stack, or another app, has published under `parameter_name`.

        `architecture` and `runtime` are those that it was built for. Each deployment of this stack takes the version
        that is the newest then. Raises LayerUnsupported as the layer itself does.
        """
        return PublishedLayer(
            scope, construct_id, parameter_name=parameter_name, architecture=architecture, runtime=runtime
        )

    @classmethod
    def shared(
        cls, scope: Construct, *, architecture: lambda_.Architecture, runtime: lambda_.Runtime
    ) -> WarmConnectionLayer:
        """Return the one layer of this architecture and runtime in the stack of `scope`, made when first asked for.

        One per stack and not one per app: a layer that other stacks import could never be replaced.
        """
        stack = Stack.of(scope)
        construct_id = f"WarmConnectionLayer-{runtime.name}-{architecture.name}"
        existing = stack.node.try_find_child(construct_id)
        if isinstance(existing, WarmConnectionLayer):
            return existing
        return cls(stack, construct_id, architecture=architecture, runtime=runtime)


class PublishedLayer(Construct):
    """A WarmConnectionLayer of another stack, by the SSM parameter with its ARN: for `attach(function, layer=...)`.

    CloudFormation reads the parameter at each deployment, so nothing ties the two stacks together. A version that was
    replaced is deleted with the next deployment of its own stack: functions that have it go on, new ones need the
    newest.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        parameter_name: str,
        architecture: lambda_.Architecture | None = None,
        runtime: lambda_.Runtime | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        architecture = architecture or lambda_.Architecture.ARM_64
        runtime = runtime or lambda_.Runtime.PYTHON_3_13
        LayerBuild(architecture=architecture.name, runtime=runtime.name)  # raises for what no layer is built for
        self.architecture_name = architecture.name
        self.runtime_name = runtime.name
        self.layer_version = lambda_.LayerVersion.from_layer_version_attributes(
            self,
            "Version",
            layer_version_arn=ssm.StringParameter.value_for_string_parameter(self, parameter_name),
            compatible_runtimes=[runtime],
        )


@jsii.implements(ILocalBundling)
class _LocalBundling:
    """Runs the build inside the CDK's staging, and keeps its error: jsii would turn it into a JavaScript one."""

    def __init__(self, build: LayerBuild) -> None:
        self._build = build
        self.failure: LayerBuildFailed | None = None

    def try_bundle(self, output_dir: str, options: object = None, **_: object) -> bool:  # noqa: ARG002 (jsii's signature)
        try:
            self._build.write(output_dir)
        except LayerBuildFailed as failure:
            self.failure = failure
            raise
        return True


def _code(build: LayerBuild, runtime: lambda_.Runtime, bundling: _LocalBundling) -> lambda_.Code:
    return lambda_.Code.from_asset(
        str(build.package),
        asset_hash=build.content_hash(),
        asset_hash_type=AssetHashType.CUSTOM,
        bundling=BundlingOptions(image=runtime.bundling_image, local=cast("ILocalBundling", bundling)),
    )
