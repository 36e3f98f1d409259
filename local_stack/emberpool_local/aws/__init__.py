"""AWS on this machine: the real `cdk` command against a moto server that understands our templates."""
