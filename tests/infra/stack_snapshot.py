"""The default app as files that a person can read and compare: one YAML a stack, without what changes by itself.

`make snapshot` writes them anew. Left out are the hashes of assets (the layer's, the image's and the example's content
has tests of its own) and what the CDK says about itself.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.infra.conftest import CHECKOUT, Template, make_app

from emberpool_app.deployment import add_stacks

FOLDER = CHECKOUT / "tests" / "infra" / "snapshot"
# A SHA-256: of an asset, in the name of its file or as the tag of its image.
HASH = re.compile(r"\b[0-9a-f]{64}\b")
OF_THE_CDK = {"Parameters": "BootstrapVersion", "Rules": "CheckBootstrapVersion"}
OF_THE_MACHINE = re.compile(r"aws:(asset|cdk):.*")
RESOURCE = re.compile(r"  (\w+):( |$)")
LINES_AROUND = 4


def as_text(template: Template) -> str:
    """Return a template as YAML: sorted, joined strings in one piece, the dashboard's JSON unfolded."""
    kept = {
        section: {name: value for name, value in values.items() if name != OF_THE_CDK.get(section)}
        if isinstance(values, dict)
        else values
        for section, values in template.items()
    }
    readable = {section: _readable(values) for section, values in kept.items() if values}
    text: str = yaml.safe_dump(readable, default_flow_style=None, width=10_000, allow_unicode=True)
    return text


def difference(name: str, template: Template) -> str:
    """Return how a stack differs from its accepted file, as a unified diff; empty when it does not.

    Each hunk names the resource that it begins in.
    """
    path = FOLDER / f"{name}.yaml"
    accepted = path.read_text().splitlines() if path.exists() else []
    now = as_text(template).splitlines()
    shown = str(path.relative_to(CHECKOUT))
    lines = difflib.unified_diff(accepted, now, shown, f"{name}, synthesized now", n=LINES_AROUND, lineterm="")
    return "\n".join(_with_resource(line, accepted) for line in lines)


def accept(templates: Mapping[str, Template]) -> list[str]:
    """Write the files of these stacks, and remove those of others; return the names of those that changed."""
    FOLDER.mkdir(exist_ok=True)
    gone = [path for path in FOLDER.glob("*.yaml") if path.stem not in templates]
    for path in gone:
        path.unlink()
    changed = [name for name, template in templates.items() if difference(name, template)]
    for name in changed:
        (FOLDER / f"{name}.yaml").write_text(as_text(templates[name]))
    return changed + [path.stem for path in gone]


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if isinstance(value, str):
        return HASH.sub("<hash>", value)
    if not isinstance(value, dict):
        return value
    joined = _joined(value)
    if joined is not None:
        return HASH.sub("<hash>", joined)
    return {
        # One string of seven thousand characters, in which nobody would see what changed.
        key: json.loads(_readable(each)) if key == "DashboardBody" else _readable(each)
        for key, each in value.items()
        if not OF_THE_MACHINE.fullmatch(key)
    }


def _joined(value: Mapping[str, Any]) -> str | None:
    """Return Fn::Join without a delimiter, and what it joins, as text in the manner of Fn::Sub."""
    match value:
        case {"Fn::Join": ["", [*parts]]}:
            pieces = [part if isinstance(part, str) else _named(part) for part in parts]
            return "".join(pieces)
    return None


def _named(part: Mapping[str, Any]) -> str:
    match part:
        case {"Ref": str(name)}:
            return f"${{{name}}}"
        case {"Fn::GetAtt": [str(name), str(attribute)]}:
            return f"${{{name}.{attribute}}}"
        case {"Fn::Sub": str(text)}:
            return text
    # Without double quotes: it may stand inside of JSON.
    return _joined(part) or f"${{{json.dumps(part, sort_keys=True)}}}".replace('"', "'")


def _with_resource(line: str, accepted: list[str]) -> str:
    hunk = re.match(r"@@ -(\d+)", line)
    if hunk is None:
        return line
    above = accepted[: int(hunk[1]) + LINES_AROUND]
    return line + next((f" {found[1]}" for each in reversed(above) if (found := RESOURCE.match(each))), "")


def main() -> None:
    """Accept the default app as it is now."""
    with tempfile.TemporaryDirectory() as folder:
        app = make_app(Path(folder))
        add_stacks(app)
        changed = accept({stack.stack_name: stack.template for stack in app.synth().stacks})
    sys.stdout.write(f"changed in {FOLDER.relative_to(CHECKOUT)}: {', '.join(changed) or 'nothing'}\n")


if __name__ == "__main__":
    main()
