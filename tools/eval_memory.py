#!/usr/bin/env python3
"""Memory of a run with many long answers: tools/eval_memory.py PROGRAM [QUESTIONS]

Asks a server of its own, which answers at once with 20 KB of thinking and a box, QUESTIONS (200) made-up
questions in MATH-500's format, with 4 and with 64 samples of each; prints the resident memory of generation
and of scoring.
"""
import http.server
import json
import random
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

THINKING = "".join(random.Random(1).choices("abcdefghij klmnop\n", k=20_000))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"data": [{"id": "made"}]})

    def do_POST(self):
        seed = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("seed", 0)
        message = {"role": "assistant", "reasoning_content": THINKING, "content": f"\\boxed{{{seed % 2}}}"}
        self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 10, "completion_tokens": 8000}})

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def peak(command):
    """MiB that the command had resident at most."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    out = subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True)
    return int(out.stdout) / 1024


def main():
    program = sys.argv[1]
    questions = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "made.jsonl"
        data.write_text("".join(json.dumps({"problem": f"What is {i}?", "answer": "1", "unique_id": str(i),
                                            "subject": "", "level": 1}) + "\n" for i in range(questions)))
        for samples in (4, 64):
            out = folder / str(samples)
            run = peak([program, "eval", "run", "--task", f"math-500={data}", "--allow-count", "--k", str(samples),
                        "--base-url", f"http://127.0.0.1:{server.server_port}", "--progress", "none", "--out",
                        str(out)])
            score = peak([program, "eval", "score", str(out), "--progress", "none"])
            size = (out / "samples.jsonl").stat().st_size / 1e6
            print(f"{samples} samples of {questions} questions, {size:.0f} MB of answers: {run:.1f} MiB resident, "
                  f"scored again {score:.1f} MiB")


if __name__ == "__main__":
    main()
