#!/usr/bin/env python3
"""Writes bogus WireGuard handshake initiations of 148 bytes each to standard output.

    initiations.py COUNT [PUBLIC-KEY]

With a public key their mac1 is right for that receiver, so that it has to look further; what follows is noise all the same.
"""

import base64
import hashlib
import os
import sys


def main():
    count = int(sys.argv[1])
    mac_key = None
    if len(sys.argv) > 2:
        mac_key = hashlib.blake2s(b"mac1----" + base64.b64decode(sys.argv[2])).digest()
    for _ in range(count):
        # Type 1, three reserved bytes, then sender index, ephemeral key, encrypted key and timestamp.
        message = b"\1\0\0\0" + os.urandom(112)
        mac1 = hashlib.blake2s(message, digest_size=16, key=mac_key).digest() if mac_key else os.urandom(16)
        sys.stdout.buffer.write(message + mac1 + bytes(16))


if __name__ == "__main__":
    main()
