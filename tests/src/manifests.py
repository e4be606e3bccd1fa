"""Runs what prints manifests, and checks every object against the schemas of Kubernetes.

    manifests.py KUBERNETES-VERSION COMMAND [ARGUMENT…]

Prints the objects as a list in JSON.
"""

import json
import subprocess
import sys

import kubernetes_validate
import yaml


def main():
    version, *command = sys.argv[1:]
    ran = subprocess.run(command, stdout=subprocess.PIPE)
    if ran.returncode != 0:
        sys.exit(ran.returncode)
    found = [one for one in yaml.safe_load_all(ran.stdout) if one is not None]
    for one in found:
        # Kubernetes has no schemas for what others add to it.
        if not one["apiVersion"].startswith("cert-manager.io/"):
            kubernetes_validate.validate(one, version, strict=True)
    json.dump(found, sys.stdout)


main()
