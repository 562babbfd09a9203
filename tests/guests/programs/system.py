"""What a program asks of its kernel: processes, threads, pipes, sockets, signals, maps, files and clocks."""

import concurrent.futures
import fcntl
import mmap
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time

with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(list(pool.map(lambda n: sum(i * i / 7 for i in range(n * 100)), range(16))))

counter = 0
lock = threading.Lock()


def add():
    global counter
    for _ in range(2000):
        with lock:
            counter += 1


threads = [threading.Thread(target=add) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(counter)

print(subprocess.run(["sh", "-c", "cat; echo err >&2; exit 5"], input=b"x" * 200000, capture_output=True).returncode)
children = []
for n in range(20):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.write(writer, f"{n}:{sum(i / (n + 1) for i in range(500))}".encode())
        os._exit(n)
    os.close(writer)
    children.append((pid, reader))
for pid, reader in children:
    print(os.read(reader, 1000).decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

server = socket.create_server(("127.0.0.1", 0))


def serve():
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(5000):
            connection.sendall(data[::-1])


threading.Thread(target=serve, daemon=True).start()
with socket.create_connection(server.getsockname()) as client:
    for size in (1, 100, 4000):
        client.sendall(bytes(range(256)) * (size // 256 + 1))
        got = b""
        while len(got) < 256 * (size // 256 + 1):
            got += client.recv(4096)
        print(size, len(got), sorted(set(got)) == list(range(256)))

left, right = socket.socketpair()
left.setblocking(False)
sent = 0
try:
    while True:
        sent += left.send(b"y" * 4096)
except BlockingIOError as error:
    print(error.errno, sent > 0, select.select([right], [left], [], 0)[0] == [right])

events = []
# Floating-point state has to survive a handler.
signal.signal(signal.SIGALRM, lambda *_: events.append(sum(1 / n for n in range(1, 50))))
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
total = 0.0
while len(events) < 20:
    for n in range(1, 1000):
        total += 1 / n
    total -= 7.484470860550343
    total = round(total, 9)
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(set(events)), events[0], total)

with tempfile.TemporaryFile() as file:
    file.truncate(3 << 20)
    with mmap.mmap(file.fileno(), 3 << 20) as shared:
        for at in range(0, 3 << 20, 4096):
            shared[at : at + 4] = at.to_bytes(4, "little")
        shared[4094:4100] = b"across"
        shared.flush()
    file.seek(0)
    data = file.read()
    print(data[4090:4104], sum(data), os.fstat(file.fileno()).st_size)
    os.lseek(file.fileno(), 1, os.SEEK_SET)
    print(os.pread(file.fileno(), 6, 4094), fcntl.fcntl(file.fileno(), fcntl.F_GETFD))

private = mmap.mmap(-1, 1 << 22)
private[:] = b"\x5a" * (1 << 22)
if os.fork() == 0:
    private[0:4] = b"kid!"
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), private[0:4], private[-1])

pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGSEGV)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

before = time.monotonic()
time.sleep(0.05)
passed = time.monotonic() - before
print(0.05 <= passed < 5, time.clock_gettime(time.CLOCK_REALTIME) > 1.7e9, time.process_time() > 0)
