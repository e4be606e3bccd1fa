"""Puts together what a kustomization says, and checks every object against the schemas of Kubernetes.

    manifests.py KUBERNETES-VERSION FOLDER

Prints the objects as a list in JSON. It knows what our kustomizations use, and refuses whatever else is in one.
"""

import json
import pathlib
import sys

import kubernetes_validate
import yaml

KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "images", "patches"}
# Lists that are merged by the name of their elements.
NAMED = {"containers", "env", "volumes", "volumeMounts", "ports"}


def objects(folder):
    customization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(customization) - KNOWN
    assert not unknown, f"{folder}: {unknown}"
    found = []
    for name in customization["resources"]:
        path = folder / name
        if path.is_dir():
            found += objects(path)
        else:
            found += [one for one in yaml.safe_load_all(path.read_text()) if one is not None]
    for patch in customization.get("patches", []):
        assert set(patch) == {"path"}, patch
        change = yaml.safe_load((folder / patch["path"]).read_text())
        (target,) = [one for one in found if identity(one) == identity(change)]
        merge(target, change)
    listed = {file.name for file in folder.glob("*.yaml")}
    used = {"kustomization.yaml", *customization["resources"]}
    used |= {patch["path"] for patch in customization.get("patches", [])}
    assert listed <= used, f"{folder}: nobody uses {listed - used}"
    return found


def identity(one):
    metadata = one["metadata"]
    return one["apiVersion"], one["kind"], metadata.get("namespace"), metadata["name"]


def merge(into, change):
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        elif key in NAMED and isinstance(value, list):
            by_name = {element["name"]: element for element in into.setdefault(key, [])}
            for element in value:
                if element["name"] in by_name:
                    merge(by_name[element["name"]], element)
                else:
                    into[key].append(element)
        else:
            into[key] = value


def main():
    version, folder = sys.argv[1:]
    found = objects(pathlib.Path(folder))
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)
    json.dump(found, sys.stdout)


main()
