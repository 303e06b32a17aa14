import asyncio

from nibble import SamplingParams

GREEDY = SamplingParams(temperature=0)


def test_async_streaming_adds_up(llm):
    async def stream():
        return [
            output.outputs[0].text_diff
            async for output in llm.generate_async("Hello, my name is", GREEDY)
        ]

    pieces = asyncio.run(stream())
    assert len(pieces) > 3
    assert "".join(pieces) == llm.generate("Hello, my name is", GREEDY).text


def test_many_requests_in_one_loop_and_the_loop_goes_on(llm):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        outputs = await asyncio.gather(
            *(llm.generate_async(f"What is {i} + {i}?", GREEDY) for i in range(20))
        )
        ticker.cancel()
        return outputs, ticks

    outputs, ticks = asyncio.run(main())
    assert ticks > 3
    alone = [llm.generate(output.prompt, GREEDY).text for output in outputs]
    assert [output.text for output in outputs] == alone


def test_a_cancelled_task_aborts_its_request(llm):
    async def main():
        handle = llm.generate_async("Hello", SamplingParams(temperature=0, ignore_eos=True))
        task = asyncio.ensure_future(handle)
        await asyncio.sleep(0.05)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return handle.result().outputs[0].finish_reason
        return "not cancelled"

    assert asyncio.run(main()) == "abort"
