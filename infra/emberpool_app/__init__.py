"""Our own CDK app: what `cdk deploy` in a clone deploys. Not part of the wheel."""
