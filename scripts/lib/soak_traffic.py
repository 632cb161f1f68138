#!/usr/bin/env python3
"""Traffic that notices every interruption, for scripts/soak.

    soak_traffic.py serve ADDRESS            receives, and prints a line of JSON every interval
    soak_traffic.py send ADDRESS SECONDS     sends, and prints a line of JSON at the end

One TCP stream as fast as it goes, and 200 numbered UDP packets a second, which the other side sends back. A stall is the
longest time in which nothing of a kind arrived, although it was being sent.
"""

import json
import socket
import struct
import sys
import threading
import time

TCP_PORT, UDP_PORT = 9000, 9001
UDP_GAP = 0.005
INTERVAL = 10
CHUNK = 1 << 18
NUMBER = struct.Struct("!Qd")


class Gap:
    """The longest time between two arrivals, in all and since it was last asked."""

    def __init__(self):
        self.last = None
        self.recent = 0.0
        self.longest = 0.0

    def arrived(self):
        now = time.monotonic()
        if self.last is not None:
            self.recent = max(self.recent, now - self.last)
            self.longest = max(self.longest, self.recent)
        self.last = now

    def ask(self):
        recent, self.recent = self.recent, 0.0
        # What is under way counts as well: a stall that never ends has no second arrival.
        if self.last is not None:
            recent = max(recent, time.monotonic() - self.last)
            self.longest = max(self.longest, recent)
        return recent


class Server:
    def __init__(self, address):
        self.address = address
        self.tcp, self.udp = Gap(), Gap()
        self.bytes = 0
        self.resets = 0
        self.packets = 0
        self.highest = 0
        self.late = 0
        self.ended = threading.Event()

    def receive_stream(self):
        with socket.create_server((self.address, TCP_PORT)) as listener:
            connection, _ = listener.accept()
        room = bytearray(CHUNK)
        try:
            while got := connection.recv_into(room):
                self.bytes += got
                self.tcp.arrived()
        except OSError as error:
            self.resets += 1
            print(json.dumps({"reset": str(error)}), flush=True)
        # An orderly end is no stall.
        self.ended.set()

    def receive_packets(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((self.address, UDP_PORT))
        while True:
            packet, sender = sock.recvfrom(2048)
            number, _ = NUMBER.unpack_from(packet)
            self.udp.arrived()
            self.packets += 1
            if number < self.highest:
                self.late += 1
            self.highest = max(self.highest, number)
            sock.sendto(packet, sender)

    def run(self):
        for work in (self.receive_stream, self.receive_packets):
            threading.Thread(target=work, daemon=True).start()
        before, since = 0, time.monotonic()
        while not self.ended.wait(INTERVAL):
            now = time.monotonic()
            line = {
                "gbits": (self.bytes - before) * 8 / (now - since) / 1e9,
                "tcp_stall_ms": self.tcp.ask() * 1e3,
                "udp_stall_ms": self.udp.ask() * 1e3,
                "udp_lost": self.highest - self.packets,
            }
            before, since = self.bytes, now
            print(json.dumps(line), flush=True)
        total = {
            "bytes": self.bytes,
            "resets": self.resets,
            "tcp_stall_ms": self.tcp.longest * 1e3,
            "udp_stall_ms": self.udp.longest * 1e3,
            "udp_received": self.packets,
            "udp_late": self.late,
        }
        print(json.dumps({"total": total}), flush=True)


class Sender:
    def __init__(self, address, seconds):
        self.address = address
        self.end = time.monotonic() + seconds
        self.resets = 0
        self.sent = 0
        self.returned = 0
        self.gap = Gap()
        self.trips = []

    def send_stream(self):
        data = bytes(CHUNK)
        try:
            with socket.create_connection((self.address, TCP_PORT), timeout=30) as connection:
                while time.monotonic() < self.end:
                    connection.sendall(data)
        except OSError as error:
            self.resets += 1
            print(json.dumps({"reset": str(error)}), flush=True)

    def receive_packets(self, sock):
        while True:
            number, when = NUMBER.unpack_from(sock.recv(2048))
            self.gap.arrived()
            self.returned += 1
            self.trips.append(time.monotonic() - when)

    def run(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((self.address, UDP_PORT))
        threading.Thread(target=self.receive_packets, args=(sock,), daemon=True).start()
        stream = threading.Thread(target=self.send_stream)
        stream.start()
        start = time.monotonic()
        while stream.is_alive() and time.monotonic() < self.end:
            self.sent += 1
            sock.send(NUMBER.pack(self.sent, time.monotonic()))
            time.sleep(max(0.0, start + self.sent * UDP_GAP - time.monotonic()))
        longest = max(self.gap.longest, self.gap.ask())
        # What is still on its way is not lost.
        time.sleep(1)
        stream.join()
        trips = sorted(self.trips)
        total = {
            "resets": self.resets,
            "udp_sent": self.sent,
            "udp_returned": self.returned,
            "udp_back_stall_ms": longest * 1e3,
            "rtt_p50_ms": trips[len(trips) // 2] * 1e3 if trips else None,
            "rtt_p99_ms": trips[len(trips) * 99 // 100] * 1e3 if trips else None,
        }
        print(json.dumps({"total": total}), flush=True)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "serve":
        Server(sys.argv[2]).run()
    elif len(sys.argv) == 4 and sys.argv[1] == "send":
        Sender(sys.argv[2], float(sys.argv[3])).run()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
