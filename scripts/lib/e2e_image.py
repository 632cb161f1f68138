#!/usr/bin/env python3
"""Writes a docker archive with the pods of scripts/e2e: busybox, and a web page that says who asked. Of busybox alone: no registry is needed.

usage: e2e_image.py BUSYBOX FILE
"""

import hashlib
import io
import json
import platform
import sys
import tarfile

# As container images name them.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TAGS = ["localhost/pause:1", "localhost/pod:1"]
COMMANDS = ["sh", "cat", "sleep", "ping", "wget", "httpd", "timeout", "hostname", "nslookup", "seq"]
# The address of the client, as httpd knows it: in brackets, and an IPv4 one written as IPv6.
PAGE = b"""#!/bin/sh
who=${REMOTE_ADDR#[}
who=${who%]}
printf 'Content-Type: text/plain\\r\\n\\r\\n%s saw %s\\n' "$(hostname)" "${who##*ffff:}"
"""


def archive(files):
    """A tar file of (name, content, mode, link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, mode, link in files:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def main(busybox, file):
    with open(busybox, "rb") as program:
        files = [("bin/busybox", program.read(), 0o755, None)]
    files += [(f"bin/{name}", b"", 0o777, "busybox") for name in COMMANDS]
    files.append(("www/cgi-bin/who", PAGE, 0o755, None))
    layer = archive(files)
    layer_id = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Cmd": ["sleep", "1000000"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
        }
    ).encode()
    config_id = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{config_id}.json", "RepoTags": TAGS, "Layers": [f"{layer_id}/layer.tar"]}]
    with open(file, "wb") as out:
        out.write(
            archive(
                [
                    (f"{config_id}.json", config, 0o644, None),
                    (f"{layer_id}/layer.tar", layer, 0o644, None),
                    ("manifest.json", json.dumps(manifest).encode(), 0o644, None),
                ]
            )
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
