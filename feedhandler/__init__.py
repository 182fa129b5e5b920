"""feedhandler: crypto market data from venue to strategy, through shared memory."""
