"""schemathesis against the OpenAPI document of a running server: BASE_URL [CASES] as arguments, cases for each endpoint.

Whatever the document allows, and much that it does not, ends in no 5xx, and every response is one that the document describes. Exits with 0
if that holds. The server wants a key that is seen to be asked for, and limits, or it will answer at length: `socius serve --api-key secret
--cache-tokens 512 --max-tokens 8`.
"""

import pathlib
import subprocess
import sys
import tempfile

BASE = sys.argv[1]
CASES = sys.argv[2] if len(sys.argv) > 2 else "50"
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
]
command = [
    str(pathlib.Path(sys.executable).parent / "schemathesis"),
    "run",
    f"{BASE}/openapi.json",
    "--header=Authorization: Bearer secret",
    f"--checks={','.join(CHECKS)}",
    "--phases=coverage,fuzzing",
    f"--max-examples={CASES}",
    "--seed=1",
    "--wait-for-schema=60",
    "--workers=4",
    "--continue-on-failure",
    "--warnings=off",
    "--no-color",
]
# Its database of failures belongs to no checkout.
sys.exit(subprocess.run(command, cwd=tempfile.mkdtemp()).returncode)
