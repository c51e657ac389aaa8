"""External Secrets' resources against the operator's own schema, which `make external-secrets-schema` writes.

That needs npm and its registry: the operator's definitions are TypeScript there, from which a JSON schema is made.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).with_suffix(".json")
TYPES = "@kubernetes-models/external-secrets"
PACKAGES = (f"{TYPES}@2.0.0", "ts-json-schema-generator@2.4.0", "typescript@5.9.3")
PARTS = ("ExternalSecretSpec", "AWSProvider")


def check(resource: dict[str, Any]) -> None:
    """Raise for an ExternalSecret, or a SecretStore of AWS, that the operator would not understand."""
    known = json.loads(SCHEMA.read_text())
    assert resource.keys() == {"apiVersion", "kind", "metadata", "spec"}
    part, content = "ExternalSecretSpec", resource["spec"]
    if resource["kind"] == "SecretStore":
        assert content.keys() == {"provider"}
        assert content["provider"].keys() == {"aws"}
        part, content = "AWSProvider", content["provider"]["aws"]
    jsonschema.validate(content, known[part])


def main() -> int:
    """Install, convert, write."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="loomweight-") as folder:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True)
        for part in PARTS:
            source = f"node_modules/{TYPES}/external-secrets.io/v1/{part}.d.ts"
            options = ["--path", source, "--type", f"I{part}", "--no-type-check", "--jsDoc", "none"]
            command = ["npx", "ts-json-schema-generator", *options]
            found[part] = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)
    SCHEMA.write_text(json.dumps({"from": PACKAGES[0]} | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
