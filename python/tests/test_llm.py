import json
import signal
import threading
import time

import numpy as np
import pytest
from conftest import DEMO, SOURCE

import nibble
from nibble import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0)


def test_greedy_tokens_are_those_of_transformers(llm):
    reference = json.loads((SOURCE / "tests/golden/demo/reference.json").read_text())
    reference = [entry for entry in reference if entry["greedy"]]
    outputs = llm.generate([entry["ids"] for entry in reference], GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == [e["greedy"] for e in reference]


def test_every_form_of_a_prompt(llm):
    text = "The capital of France is"
    ids = llm.encode(text)
    assert llm.decode(ids) == text
    for prompt in (text, ids, {"prompt": text}, {"prompt_token_ids": ids}, np.array(ids)):
        output = llm.generate(prompt, GREEDY)
        assert (output.text, output.prompt_token_ids) == (" Paris.", ids)
        assert output.prompt.endswith(text)
    outputs = llm.generate([text, ids], [GREEDY, SamplingParams(temperature=0, max_tokens=1)])
    assert [output.text for output in outputs] == [" Paris.", " Paris"]
    assert [output.outputs[0].finish_reason for output in outputs] == ["stop", "length"]


def test_logprobs_are_numpy_arrays(llm):
    params = SamplingParams(temperature=0, logprobs=3, prompt_logprobs=0)
    output = llm.generate("The capital of France is", params)
    answer = output.outputs[0]
    assert answer.logprobs.token_ids.tolist() == answer.token_ids
    assert answer.logprobs.top_logprobs.shape == (len(answer.token_ids), 3)
    assert (np.diff(answer.logprobs.top_logprobs, axis=1) <= 0).all()
    assert (answer.logprobs.ranks == 1).all()
    assert answer.cumulative_logprob == pytest.approx(answer.logprobs.logprobs.sum())
    assert output.prompt_logprobs.token_ids.tolist() == output.prompt_token_ids[1:]


def test_n_and_best_of(llm):
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=6, n=2, best_of=4)
    outputs = llm.generate("My name is", params).outputs
    means = [output.cumulative_logprob / len(output.token_ids) for output in outputs]
    assert [output.index for output in outputs] == [0, 1]
    assert means == sorted(means, reverse=True)


def test_a_stop_string_and_a_stop_id_are_reported(llm):
    text = llm.generate("Hello, my name is", SamplingParams(temperature=0, stop=" live"))
    assert text.outputs[0].stop_reason == " live"
    assert text.text.endswith("and I")
    first = text.outputs[0].token_ids[0]
    ids = llm.generate("Hello, my name is", SamplingParams(temperature=0, stop_token_ids=[first]))
    assert (ids.text, ids.outputs[0].stop_reason) == ("", first)


def test_guided_output_is_a_number(llm):
    params = SamplingParams(temperature=0, max_tokens=20, guided={"regex": "[0-9]{3}"})
    assert llm.generate("What is 384 + 597?", params).text.isdigit()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    params = SamplingParams(temperature=0, max_tokens=60, guided={"json": schema})
    output = llm.generate("x", params)
    if output.outputs[0].finish_reason == "stop":
        assert isinstance(json.loads(output.text)["a"], int)


def test_streaming_adds_up(llm):
    handle = llm.generate_async("Hello, my name is", GREEDY)
    pieces = [output.outputs[0].text_diff for output in handle]
    assert "".join(pieces) == handle.result().text == llm.generate("Hello, my name is", GREEDY).text
    assert handle.finished


def test_a_chat_parts_thinking_from_the_answer(llm):
    messages = [{"role": "user", "content": "What is 384 + 597?"}]
    output = llm.chat(messages, GREEDY).outputs[0]
    assert "981" in output.text
    assert output.reasoning_content
    assert "think>" not in output.text + output.reasoning_content
    assert llm.apply_chat_template(messages)[0] == 0
    thinking, answer = "", ""
    for part in llm.chat_async(messages, GREEDY):
        thinking += part.outputs[0].reasoning_content_diff
        answer += part.outputs[0].text_diff
    assert (thinking, answer) == (output.reasoning_content, output.text)
    with pytest.raises(ValueError, match="role"):
        llm.chat([{"role": "x", "content": "Hi"}])


def test_abort_and_timeout(llm):
    handle = llm.generate_async("Hello", SamplingParams(temperature=0, ignore_eos=True))
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    handle.abort()
    assert handle.result().outputs[0].finish_reason == "abort"


def test_whatever_ends_the_wait_ends_the_requests(llm):
    def interrupt(*_):
        raise RuntimeError("enough")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(RuntimeError, match="enough"):
            llm.generate(["Hello", "My name is"], SamplingParams(temperature=0, ignore_eos=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    tokens = llm.generate("Hello", SamplingParams(max_tokens=1)).outputs[0].token_ids
    assert len(tokens) == 1  # a step later
    stats = llm.get_stats()
    assert (stats["num_requests_running"], stats["num_requests_waiting"]) == (0, 0)


def longest_pause_beside(call):
    """The longest that this thread stood still while another ran `call`, and how long that ran."""
    spans = []

    def timed():
        begin = time.perf_counter()
        call()
        spans.append(time.perf_counter() - begin)

    other = threading.Thread(target=timed)
    pause, last = 0.0, time.perf_counter()
    other.start()
    while other.is_alive():
        now = time.perf_counter()
        pause, last = max(pause, now - last), now
    other.join()
    return pause, spans[0]


def test_other_threads_run_while_one_encodes(llm):
    text = "Hello, my name is nobody. " * 600_000
    pause, span = longest_pause_beside(lambda: llm.encode(text))
    assert pause < span / 2


def test_other_threads_run_while_one_waits(llm):
    handle = llm.generate_async("Hello", SamplingParams(temperature=0, ignore_eos=True))
    waiter = threading.Thread(target=handle.result)
    waiter.start()
    begin = time.perf_counter()
    rounds = 0
    while time.perf_counter() - begin < 0.2:
        rounds += 1
    assert waiter.is_alive()
    assert rounds > 1000  # a waiter that kept the GIL would leave next to none
    handle.abort()
    waiter.join()


def test_threads_share_the_model(llm):
    texts = []
    threads = [
        threading.Thread(
            target=lambda: texts.append(llm.generate("The capital of France is", GREEDY).text)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [" Paris."] * 8


def test_all_prompts_are_checked_before_any_runs(llm):
    before = llm.get_stats()["generation_tokens_total"]
    with pytest.raises(ValueError, match="prompt 1: token 0 of the prompt is 4096"):
        llm.generate(["good", [4096]], GREEDY)
    assert llm.get_stats()["generation_tokens_total"] == before


def test_a_list_of_params_has_one_for_each_prompt(llm):
    with pytest.raises(ValueError, match="1 sampling params for 2 prompts"):
        llm.generate(["Hello", "My name is"], [GREEDY])
    assert llm.generate("The capital of France is", [GREEDY]).text == " Paris."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 3}, "temperature is 3, expected 0..2"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_token": 3}, "did you mean 'max_tokens'"),
        ({"n": 2, "best_of": 1}, "best_of is 1"),
        ({"stop": [3]}, "stop.0. is an integer, expected a string"),
        ({"temperature": float("nan")}, "JSON"),
    ],
)
def test_sampling_params_are_checked_when_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**arguments)


def test_sampling_params_aliases_and_equality():
    assert SamplingParams(max_new_tokens=3) == SamplingParams(max_tokens=3)
    assert repr(SamplingParams(max_tokens=3, stop="x")) == "SamplingParams(max_tokens=3, stop='x')"
    assert SamplingParams(temperature=np.float32(0.5)).to_json()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tensor_parallel_size": 8}, nibble.InvalidArgumentError, "can be cut as"),
        ({"pipeline_parallel_size": 2}, nibble.UnsupportedError, "pipeline_parallel_size is 2"),
        ({"max_batchsize": 8}, nibble.InvalidArgumentError, "did you mean 'max_batch_size'"),
        ({"kv_cache_config": {"dtype": "int4"}}, ValueError, "kv_cache_config.dtype is 'int4'"),
        ({"speculative_config": {"decoding_type": "Eagle3"}}, NotImplementedError, "Eagle3"),
        ({"model": "no/such"}, FileNotFoundError, "no/such"),
    ],
)
def test_options_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        LLM(**{"model": DEMO, **options})


def test_drafts_change_no_token_and_are_counted(llm):
    config = nibble.MTPDecodingConfig(num_nextn_predict_layers=3)
    model = nibble.DeepseekV3ForCausalLM.from_pretrained(DEMO)
    with LLM(model=model, speculative_config=config, max_batch_size=4) as drafting:
        text = "What is 384 + 597?"
        assert drafting.generate(text, GREEDY).text == llm.generate(text, GREEDY).text
        stats = drafting.get_stats()
    assert stats["acceptance_length"] > 1
    assert len(stats["spec_decode_num_accepted_tokens_per_pos_total"]) == 3


def test_nothing_starts_after_shutdown():
    with LLM(model=DEMO) as llm:
        pass
    with pytest.raises(nibble.UnavailableError):
        llm.generate("Hello")
