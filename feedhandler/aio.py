"""For strategies that run in asyncio: batches of a feed as an async iterator, waited for in a thread of its own.

    async for batch in feedhandler.aio.batches(feed):
        ...
"""
import asyncio
import concurrent.futures

WAIT_S = 0.25  # longest wait of the thread, so that a cancelled task ends soon


async def batches(feed):
    """Yield each Batch of a feed (see Feed.poll); never ends by itself. Only one iterator may use a feed at a time.

    The thread waits only while the loop awaits the next batch, so a batch is never touched by two threads."""
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(1, "feedhandler-wait") as thread:
        while True:
            batch = await loop.run_in_executor(thread, feed.poll, WAIT_S)
            if len(batch) or batch.lost:
                yield batch
