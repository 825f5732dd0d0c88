"""The two endpoints of a kubelet's API that `tail` needs: a container's log, and port-forward over WebSockets.

usage: kubelet.py CERTIFICATE KEY LOG_FOLDER -> prints the port; LOG_FOLDER/POD is the log of POD's container.
Loopback only; ends with its standard input.
"""

import base64
import hashlib
import os
import socket
import ssl
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

LOGS = sys.argv[3]


class Hold:
    """While LOG_FOLDER/hold has a number, logs are answered when so many ask at the same time; LOG_FOLDER/most has the most."""

    def __init__(self):
        self.condition = threading.Condition()
        self.asking, self.most, self.passed = 0, 0, 0

    def __enter__(self):
        with self.condition:
            self.asking += 1
            try:
                wanted = int(open(os.path.join(LOGS, "hold")).read())
            except FileNotFoundError:
                return
            self.most = max(self.most, self.asking)
            if self.asking >= wanted:
                # More, if there are any, come now.
                self.condition.wait(0.5)
                with open(os.path.join(LOGS, "most"), "w") as most:
                    most.write(str(self.most))
                self.passed += wanted
                self.condition.notify_all()
            else:
                passed = self.passed
                self.condition.wait_for(lambda: self.passed > passed, timeout=3)

    def __exit__(self, *_):
        with self.condition:
            self.asking -= 1


HOLD = Hold()


class Kubelet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        parts = url.path.strip("/").split("/")
        if parts[0] == "containerLogs":
            self.container_log(parts[2], "true" in query.get("follow", []), "true" in query.get("previous", []))
        elif parts[0] == "portForward":
            self.port_forward([int(port) for text in query.get("port", []) for port in text.split(",")])
        else:
            self.send_error(404)

    def container_log(self, pod, follow, previous):
        path = os.path.join(LOGS, pod + (".previous" if previous else ""))
        try:
            log = open(path, "rb")
        except FileNotFoundError:
            self.send_error(400, "no such container")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with HOLD:
            self.pass_on(log, path, follow)

    def pass_on(self, log, path, follow):
        while True:
            data = log.read(65536)
            if data:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            elif follow and os.path.exists(path) and os.stat(path).st_ino == os.fstat(log.fileno()).st_ino:
                time.sleep(0.05)
            else:
                break
        self.wfile.write(b"0\r\n\r\n")

    def port_forward(self, ports):
        accept = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(accept.encode()).digest()).decode())
        self.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.end_headers()
        self.close_connection = True
        lock = threading.Lock()

        def send(channel, data):
            payload = bytes([channel]) + data
            head = bytes([0x82, len(payload)]) if len(payload) < 126 else b"\x82\x7e" + struct.pack(">H", len(payload))
            with lock:
                self.wfile.write(head + payload)
                self.wfile.flush()

        targets = {}
        for index, port in enumerate(ports):
            # Both channels of a port, data and errors, begin with its number.
            send(2 * index, struct.pack("<H", port))
            send(2 * index + 1, struct.pack("<H", port))
            try:
                target = targets[2 * index] = socket.create_connection(("127.0.0.1", port))
            except OSError as error:
                send(2 * index + 1, str(error).encode())
                return
            threading.Thread(target=self.pump, args=(target, 2 * index, send, self.connection), daemon=True).start()
        try:
            while True:
                first, length = self.rfile.read(2)
                length &= 0x7F
                if length == 126:
                    (length,) = struct.unpack(">H", self.rfile.read(2))
                elif length == 127:
                    (length,) = struct.unpack(">Q", self.rfile.read(8))
                mask = self.rfile.read(4)
                data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
                if first & 0x0F == 8:
                    break
                if first & 0x0F in (0, 2) and data and data[0] in targets:
                    targets[data[0]].sendall(data[1:])
        except (ValueError, OSError):
            pass
        for target in targets.values():
            target.close()

    @staticmethod
    def pump(target, channel, send, connection):
        try:
            while data := target.recv(32768):
                send(channel, data)
        except OSError:
            pass
        # As a kubelet does when the other side of the port is done.
        try:
            connection.sendall(b"\x88\x00")
        except OSError:
            pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Kubelet)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
