"""Whole programs, as a user runs them."""
import re
import signal
import subprocess
import sys
import textwrap
import time

from conftest import DEMO, SOURCE

CARD = """
    from {llm_module} import LLM
    from {params_module} import SamplingParams

    def main():
        prompts = ["The president of the United States is", "The capital of France is"]
        sampling_params = SamplingParams(max_tokens=32)
        llm = LLM(model={model!r}, tensor_parallel_size=1, enable_attention_dp=True)
        for output in llm.generate(prompts, sampling_params):
            print(f"Prompt: {{output.prompt!r}}, Generated text: {{output.outputs[0].text!r}}")

    if __name__ == '__main__':
        main()
"""
CAPITAL = "Prompt: 'The capital of France is', Generated text: ' Paris.'"


def card(tmp_path, llm_module, params_module):
    script = tmp_path / "card.py"
    text = CARD.format(llm_module=llm_module, params_module=params_module, model=str(DEMO))
    script.write_text(textwrap.dedent(text))
    return str(script)


def test_the_model_cards_program_with_only_its_import_changed(tmp_path):
    script = card(tmp_path, "nibble", "nibble")
    output = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert CAPITAL in output.stdout


def test_compat_runs_it_without_even_that(tmp_path):
    script = card(tmp_path, "tensorrt_llm._torch", "tensorrt_llm")
    command = [sys.executable, "-m", "nibble.compat", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert CAPITAL in output.stdout


def test_the_documents_examples_run():
    text = (SOURCE / "docs/api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 6
    command = [sys.executable, "-c", "\n".join(blocks)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    assert "The capital of France is  Paris." in output.stdout
    assert "[' Berlin.', ' Tokyo.']" in output.stdout


def test_ctrl_c_ends_a_program_that_waits(tmp_path):
    program = f"""
from nibble import LLM, SamplingParams
llm = LLM(model={str(DEMO)!r})
print("ready", flush=True)
try:
    llm.generate(["Hello"] * 64, SamplingParams(temperature=0, ignore_eos=True))
except KeyboardInterrupt:
    stats = llm.get_stats()
    print("interrupted", flush=True)
    print(llm.generate("The capital of France is", SamplingParams(temperature=0)).text)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    begin = time.perf_counter()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output == "interrupted\n Paris.\n"
    assert time.perf_counter() - begin < 10
