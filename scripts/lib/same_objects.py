#!/usr/bin/env python3
"""Compares what kustomize, helm and `subsea` make of manifests/. Usage: same_objects.py FOLDER"""

import sys
from pathlib import Path

import yaml

MANAGED_BY = "app.kubernetes.io/managed-by"


def objects(path):
    """Every object of a file, by kind, namespace and name."""
    found = {}
    for document in yaml.safe_load_all(path.read_text()):
        if document is None:
            continue
        meta = document["metadata"]
        key = (document["kind"], meta.get("namespace", ""), meta["name"])
        if key in found:
            sys.exit(f"error: {path.name} has {key} twice")
        found[key] = document
    if not found:
        sys.exit(f"error: {path.name} has no object")
    return found


def plain(value):
    """Without what whoever installs puts in: the label that says who it is."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != MANAGED_BY}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


def differences(path, left, right):
    """Where two values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            if key not in left or key not in right:
                yield f"{path}.{key} is on one side only"
            else:
                yield from differences(f"{path}.{key}", left[key], right[key])
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right)):
            yield from differences(f"{path}[{index}]", *pair)
    elif left != right:
        yield f"{path}: {left!r} and {right!r}"


def compare(left_path, right_path, leave_out=(), change=lambda key, value: value, names=lambda found: found):
    left, right = objects(left_path), names(objects(right_path))
    left = {k: v for k, v in left.items() if k[0] not in leave_out}
    wrong = [f"{k} is in one of them only" for k in sorted(left.keys() ^ right.keys())]
    for key in sorted(left.keys() & right.keys()):
        ours = change(key, left[key])
        where = "/".join(part for part in key if part)
        wrong += differences(where, plain(ours), plain(right[key]))
    for line in wrong:
        print(f"{left_path.name}, {right_path.name}: {line}", file=sys.stderr)
    print(f"{left_path.name} and {right_path.name}: {len(left)} objects, {len(wrong)} differences")
    return len(wrong)


def with_url(key, document):
    """The base, with the URL that the verb was told."""
    if key[0] == "StatefulSet":
        args = document["spec"]["template"]["spec"]["containers"][0]["args"]
        first = next(i for i, a in enumerate(args) if a.startswith("--advertise="))
        args.insert(first, "--advertise=https://subsea-broker.example.net:8443")
    return document


def named_by_revision(key, document):
    """The base, as the first revision of the chart names its Job."""
    if key[0] == "Job":
        document["metadata"]["name"] += "-1"
    return document


def without_revision(found):
    """The chart's Job is of its release's revision."""
    return {(k[0], k[1], k[2].removesuffix("-1")): v for k, v in found.items()}


def main():
    folder = Path(sys.argv[1])
    # A chart makes no namespace: helm does, or its user.
    wrong = compare(folder / "manifests-cluster.yaml", folder / "chart.yaml", ("Namespace",))
    wrong += compare(
        folder / "manifests-overlays-admission.yaml",
        folder / "chart-admission.yaml",
        ("Namespace",),
        named_by_revision,
        without_revision,
    )
    wrong += compare(folder / "manifests-broker.yaml", folder / "verb-broker.yaml", change=with_url)
    sys.exit(1 if wrong else 0)


main()
