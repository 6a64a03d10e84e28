# Connects to the host and port of its arguments, says so with one byte, and passes bytes on both ways until one side ends.
import os, select, socket, sys

try:
    peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
except (OSError, socket.error) as error:
    sys.exit(str(error))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
os.write(1, b'+')
ways = {0: peer.sendall, peer.fileno(): lambda data: write(data)}


def write(data):
    while data:
        data = data[os.write(1, data) :]


try:
    while len(ways) == 2:
        for fd in select.select(list(ways), [], [])[0]:
            data = os.read(fd, 65536)
            if not data:
                sys.exit()
            ways[fd](data)
except (OSError, socket.error) as error:
    sys.exit(str(error))
