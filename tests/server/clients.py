#!/usr/bin/env python3
"""The openai and anthropic packages, LangChain and LiteLLM against a running nibble serve on the demo checkpoint.

    tests/server/clients.py BASE_URL

Exits 77 when a package is missing: tools/serve_clients.sh installs them and starts the server.
"""
import asyncio
import importlib.metadata
import json
import os
import re
import sys
import urllib.request

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it is downloaded
os.environ["LANGSMITH_TRACING"] = "false"

try:
    import anthropic
    import litellm
    import openai
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI
    from prometheus_client.parser import text_string_to_metric_families
    from pydantic import BaseModel
except ImportError as error:
    print(f"skipped: {error}; tools/serve_clients.sh installs the packages")
    sys.exit(77)

BASE = sys.argv[1]
HELLO = [{"role": "user", "content": "Hello!"}]
GREETING = "Hello! How can I help you today?"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}}}
client = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)


class Person(BaseModel):
    name: str
    age: int
    city: str


def chat():
    reply = client.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    assert reply.choices[0].message.content == GREETING, reply
    assert reply.choices[0].message.reasoning_content == "The user greets me."
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def stream():
    text, usage = "", None
    for chunk in client.chat.completions.create(model="demo", messages=HELLO, temperature=0, stream=True,
                                                stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
    assert text == GREETING and usage.completion_tokens > 10


def tools():
    question = [{"role": "user", "content": "What is the weather in Sofia?"}]
    reply = client.chat.completions.create(model="demo", messages=question, tools=[WEATHER], temperature=0)
    call = reply.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Sofia"} and reply.choices[0].finish_reason == "tool_calls"
    history = question + [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    client.chat.completions.create(model="demo", messages=history, tools=[WEATHER], temperature=0, max_tokens=20)
    with client.chat.completions.stream(model="demo", messages=question, tools=[WEATHER], temperature=0) as events:
        for _ in events:
            pass
        final = events.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Sofia"}


def parse():
    reply = client.chat.completions.parse(
        model="demo", temperature=0, response_format=Person,
        messages=[{"role": "user", "content": "Noah is 90 years old and lives in Bucharest. Return a JSON object with the keys "
                                              "name, age and city."}])
    assert reply.choices[0].message.parsed == Person(name="Noah", age=90, city="Bucharest"), reply


def completions():
    reply = client.completions.create(model="demo", prompt="The capital of France is", temperature=0, max_tokens=2, logprobs=1)
    assert reply.choices[0].text == " Paris." and len(reply.choices[0].logprobs.tokens) == 2


def responses():
    reply = client.responses.create(model="demo", input="Hello!", temperature=0)
    assert reply.output_text == GREETING and reply.status == "completed"
    with client.responses.stream(model="demo", input="Hello!", temperature=0) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    assert text == GREETING == final.output_text


def models():
    assert [model.id for model in client.models.list()][0] == "demo"
    assert client.models.retrieve("demo").id == "demo"


def errors():
    for arguments, kind in (({"model": "nope"}, openai.NotFoundError), ({"model": "demo", "temperature": 9},
                                                                        openai.BadRequestError)):
        try:
            client.chat.completions.create(messages=HELLO, **arguments)
        except kind as error:
            assert error.body["message"]
        else:
            raise AssertionError(arguments)


async def asynchronous():
    caller = openai.AsyncOpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
    replies = await asyncio.gather(*(caller.chat.completions.create(model="demo", messages=HELLO, temperature=0)
                                     for _ in range(16)))
    assert all(reply.choices[0].message.content == GREETING for reply in replies)
    text = ""
    async for chunk in await caller.chat.completions.create(model="demo", messages=HELLO, temperature=0, stream=True):
        text += chunk.choices[0].delta.content or ""
    assert text == GREETING
    stream = await caller.chat.completions.create(model="demo", messages=HELLO, stream=True,
                                                  extra_body={"ignore_eos": True, "max_tokens": 2000})
    await stream.__anext__()
    await stream.close()  # as a stop button does


def many():
    asyncio.run(asynchronous())


def messages():
    caller = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
    reply = caller.messages.create(model="demo", max_tokens=100, messages=HELLO, extra_body={"temperature": 0})
    assert [block.type for block in reply.content] == ["thinking", "text"] and reply.content[1].text == GREETING
    with caller.messages.stream(model="demo", max_tokens=100, messages=HELLO, extra_body={"temperature": 0}) as events:
        text = "".join(events.text_stream)
    assert text == GREETING
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    reply = caller.messages.create(model="demo", max_tokens=200, extra_body={"temperature": 0}, tools=[tool],
                                   messages=[{"role": "user", "content": "What is the weather in Sofia?"}])
    assert reply.stop_reason == "tool_use" and reply.content[-1].input == {"city": "Sofia"}
    assert caller.messages.count_tokens(model="demo", messages=HELLO).input_tokens > 0
    try:
        caller.messages.create(model="demo", max_tokens=10, messages=HELLO, extra_body={"temperature": 9})
    except anthropic.BadRequestError:
        return
    raise AssertionError("temperature 9 was taken")


def langchain():
    model = ChatOpenAI(base_url=BASE + "/v1", api_key="none", model="demo", temperature=0, max_retries=0)
    assert model.invoke("Hello!").content == GREETING
    chunks = list(model.stream("Hello!", stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == GREETING
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 10
    question = [HumanMessage("What is the weather in Sofia?")]
    for reply in (model.bind_tools([WEATHER]).invoke(question),
                  sum(list(model.bind_tools([WEATHER]).stream(question))[1:], next(model.bind_tools([WEATHER]).stream(question)))):
        assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("get_weather", {"city": "Sofia"})], reply
    history = question + [reply, ToolMessage("20 degrees", tool_call_id=reply.tool_calls[0]["id"])]
    model.bind_tools([WEATHER]).invoke(history, max_tokens=30)
    person = model.with_structured_output(Person, method="json_schema").invoke(
        "Noah is 90 years old and lives in Bucharest. Return a JSON object with the keys name, age and city.")
    assert person == Person(name="Noah", age=90, city="Bucharest"), person


def lite():
    for name in ("hosted_vllm/demo", "openai/demo"):
        common = {"model": name, "api_base": BASE + "/v1", "api_key": "none", "temperature": 0, "num_retries": 0}
        reply = litellm.completion(messages=HELLO, **common)
        assert reply.choices[0].message.content == GREETING and reply.choices[0].finish_reason == "stop"
        assert reply.choices[0].message.reasoning_content == "The user greets me."
        text, reasoning, usage = "", "", None
        for chunk in litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **common):
            usage = getattr(chunk, "usage", None) or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        assert text == GREETING and reasoning == "The user greets me.", (text, reasoning)
        assert usage.completion_tokens > 10
        reply = litellm.completion(messages=[{"role": "user", "content": "What is the weather in Sofia?"}], tools=[WEATHER], **common)
        assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == {"city": "Sofia"}
        assert reply.choices[0].finish_reason == "tool_calls"


def version():
    reply = json.load(urllib.request.urlopen(BASE + "/version"))
    from_git = os.path.exists(os.path.join(os.path.dirname(__file__), "..", "..", ".git"))
    assert re.fullmatch("[0-9a-f]{12}" if from_git else "([0-9a-f]{12})?", reply["commit"]), reply


def metrics():
    page = urllib.request.urlopen(BASE + "/metrics").read().decode()
    names = {family.name for family in text_string_to_metric_families(page)}
    assert "vllm:time_to_first_token_seconds" in names and "nibble_step_seconds" in names, names


for check in (chat, stream, tools, parse, completions, responses, models, errors, many, messages, langchain, lite, version,
              metrics):
    check()
    print("ok", check.__name__)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("openai", "anthropic", "langchain-openai", "litellm")))
