"""Our CDK app: what `cdk deploy` in a clone deploys. See emberpool_app for what is in it."""

from __future__ import annotations

import os
import shutil
import sys

# Node 20 works, too; jsii's banner about its age would hide our own lines. Read when aws_cdk is imported.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")

if shutil.which(os.environ.get("JSII_NODE", "node")) is None:
    # Before the import, which would start it and leave a traceback of its own.
    sys.exit("emberpool: Node.js is missing, the CDK needs it; install Node.js 22 or newer")
try:
    from aws_cdk import App

    from emberpool_app.deployment import add_stacks
    from emberpool_cdk import LayerBuildFailed, SourceMissing
except ModuleNotFoundError as missing:
    sys.exit(f"emberpool: the Python package {missing.name} is missing; run `make synth`, which installs it")


def main() -> None:
    """Synthesize the app, or exit with one message."""
    app = App()
    try:
        budget = add_stacks(app)
    except (ValueError, LayerBuildFailed, SourceMissing) as error:
        sys.exit(f"emberpool: {error}")
    app.synth()
    sys.stderr.write(f"{budget.as_table()}\n")


if __name__ == "__main__":
    main()
