#!/usr/bin/env python3
"""Tokens per second of llama.cpp on a GGUF (tools/make_gguf.py), in the shape of `nibble bench offline`.

    build/llama/bin/python tools/bench_llama.py demo-q4_0.gguf --threads 1,2 [--text "prompt"]

A prefill row is one prompt of random tokens with logits for its last one; a decode row is that many sequences with a
prompt of 8 tokens, one token each a step, --steps steps, the prompts not counted: they are decoded anew before each
timing. Each row is the best of --repeats. --text prints a greedy continuation instead. --commands takes measurements from standard input, one a line, and answers each
with its tokens per second: "CPUS KIND N", as "0,1 decode 8" on processors 0 and 1 with a thread for each, or
"0 prefill 512"; the model is loaded once, and contexts keep their memory (tools/compare_llama.py).
"""
import argparse
import os
import random
import sys
import time

import llama_cpp

PROMPT = 8  # tokens in front of a decode measurement


class Context:
    def __init__(self, model, threads, tokens, sequences):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = max(2048, sequences)
        params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.batch = llama_cpp.llama_batch_init(max(2048, sequences), 0, 1)

    def use_threads(self, threads):
        llama_cpp.llama_set_n_threads(self.context, threads, threads)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, entries):
        """entries: (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(entries)
        for i, (token, position, sequence, logits) in enumerate(entries):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = logits
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code != 0:
            raise SystemExit(f"llama_decode says {code}")
        llama_cpp.llama_synchronize(self.context)

    def prefill(self, tokens):
        last = len(tokens) - 1
        for first in range(0, len(tokens), 2048):
            self.decode([(t, first + i, 0, first + i == last) for i, t in enumerate(tokens[first:first + 2048])])

    def restart(self, sequences, next_token):
        """Forgets everything and decodes a prompt for each sequence."""
        self.clear()
        for sequence in range(sequences):
            self.decode([(next_token(), i, sequence, i == PROMPT - 1) for i in range(PROMPT)])

    def decode_steps(self, sequences, steps, next_token):
        """Behind restart()."""
        for position in range(PROMPT, PROMPT + steps):
            self.decode([(next_token(), position, s, True) for s in range(sequences)])


def best_of(repeats, run, prepare=lambda: None):
    times = []
    for _ in range(repeats):
        prepare()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(model, threads, prompts, batches, steps, repeats, vocabulary):
    rng = random.Random(0)

    def next_token():
        return rng.randrange(100, vocabulary - 100)

    row = {}
    for length in prompts:
        context = Context(model, threads, length + 8, 1)
        tokens = [next_token() for _ in range(length)]

        def prefill():
            context.clear()
            context.prefill(tokens)

        context.prefill(tokens[:16])
        row[f"prefill {length}"] = length / best_of(repeats, prefill)
        context.close()
    for size in batches:
        context = Context(model, threads, size * (PROMPT + steps), size)
        seconds = best_of(repeats, lambda: context.decode_steps(size, steps, next_token),
                          prepare=lambda: context.restart(size, next_token))
        row[f"decode {size}"] = size * steps / seconds
        context.close()
    return row


class Measurements:
    """Answers --commands."""

    def __init__(self, model, steps, vocabulary):
        self.model, self.steps, self.vocabulary = model, steps, vocabulary
        self.rng = random.Random(0)
        self.contexts = {}

    def next_token(self):
        return self.rng.randrange(100, self.vocabulary - 100)

    def tokens(self, count):
        return [self.next_token() for _ in range(count)]

    def context(self, kind, n, threads):
        if (kind, n) not in self.contexts:
            if kind == "prefill":
                context = Context(self.model, threads, n + 8, 1)
                context.prefill(self.tokens(16))
            else:
                context = Context(self.model, threads, n * (PROMPT + self.steps), n)
            self.contexts[kind, n] = context
        self.contexts[kind, n].use_threads(threads)
        return self.contexts[kind, n]

    def measure(self, cpus, kind, n):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cpus)
        context = self.context(kind, n, len(cpus))
        if kind == "prefill":
            tokens = self.tokens(n)
            start = time.perf_counter()
            context.clear()
            context.prefill(tokens)
            return n / (time.perf_counter() - start)
        context.restart(n, self.next_token)
        start = time.perf_counter()
        context.decode_steps(n, self.steps, self.next_token)
        return n * self.steps / (time.perf_counter() - start)

    def serve(self):
        print("ready", flush=True)
        for line in sys.stdin:
            cpus, kind, n = line.split()
            print(f"{self.measure({int(c) for c in cpus.split(',')}, kind, int(n)):.3f}", flush=True)


def greedy(model, text, count):
    vocab = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    tokens = (llama_cpp.llama_token * (len(text) + 16))()
    used = llama_cpp.llama_tokenize(vocab, text.encode(), len(text.encode()), tokens, len(tokens), True, True)
    context = Context(model, 2, 1024, 1)
    context.prefill(list(tokens[:used]))
    answer = []
    while len(answer) < count:
        logits = llama_cpp.llama_get_logits_ith(context.context, -1)
        token = max(range(size), key=lambda i: logits[i])
        if token == llama_cpp.llama_vocab_eos(vocab):
            break
        answer.append(token)
        context.decode([(token, used + len(answer) - 1, 0, True)])
    context.close()
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompts", default="512,4096")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text")
    parser.add_argument("--commands", action="store_true")
    options = parser.parse_args()

    def numbers(text):
        return [int(n) for n in text.split(",") if n]

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(options.model.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp can't load {options.model}")
    if options.text:
        print(greedy(model, options.text, options.steps))
        return
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    if options.commands:
        Measurements(model, options.steps, vocabulary).serve()
        return
    for threads in numbers(options.threads):
        row = measure(model, threads, numbers(options.prompts), numbers(options.batches), options.steps,
                      options.repeats, vocabulary)
        print(f"{threads} threads: " + ", ".join(f"{name} {rate:.1f} tok/s" for name, rate in row.items()), flush=True)


if __name__ == "__main__":
    main()
