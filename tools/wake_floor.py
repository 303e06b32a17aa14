#!/usr/bin/env python3
"""How late a machine itself is: the floor under any server's added latency.

    python3 tools/wake_floor.py [SECONDS]

One process computes without pause, as an engine does. Another sleeps 10 ms and works for 0.5 ms, as a
server that sends 32 tokens does, and prints how much later than that each turn ended.
"""

import multiprocessing
import sys
import time

SLEEP_SECONDS = 0.01
WORK_SECONDS = 0.0005


def compute_until(end: float) -> None:
    while time.monotonic() < end:
        pass


def main() -> None:
    end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 12)
    engine = multiprocessing.Process(target=compute_until, args=(end,))
    engine.start()
    late = []
    while time.monotonic() < end:
        begin = time.monotonic()
        time.sleep(SLEEP_SECONDS)
        compute_until(time.monotonic() + WORK_SECONDS)
        late.append(1e3 * (time.monotonic() - begin - SLEEP_SECONDS - WORK_SECONDS))
    engine.join()
    late.sort()
    shares = [0.5, 0.9, 0.95, 0.98, 0.99]
    told = ", ".join(f"{100 * share:.0f} % {late[int(len(late) * share)]:.2f}" for share in shares)
    print(f"{len(late)} turns, ms later than asked: {told}, most {late[-1]:.2f}")


if __name__ == "__main__":
    main()
