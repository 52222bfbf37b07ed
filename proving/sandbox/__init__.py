"""A venue on loopback that speaks the Bybit V5 protocol, on the synthetic market's matching engine.

Real clients, pointed here by their documented attributes, trade linear perpetuals against a market
that is a function of its seed: `l2 sandbox` serves it.

Here are REST (market data, order entry, positions, balances, histories and settings, with signatures,
receive windows, rate limits and the venue's codes), the public stream (books of 1, 50, 200 and 1000
levels, trades, tickers, candles, liquidations, price limits), the private stream, order entry over
WebSocket with disconnect-cancel-all, conditional orders with take-profit, stop-loss and trailing stops,
self-match prevention, and faults on command. Not here are hedge mode, portfolio margin, orders for
retail price improvement, and other categories than linear; a request for one of them is refused.

| module     | what it holds                                                    |
|------------|------------------------------------------------------------------|
| exchange   | running markets, clients and their orders, in time               |
| ledger     | what executions, funding and liquidation do to money             |
| notices    | what clients are told of their own affairs                       |
| trading    | clients and orders, as the venue writes them                     |
| entry      | orders created, amended, cancelled, with the venue's checks      |
| checks     | what an order is checked for before it may enter                 |
| triggers   | conditional orders, and stops of positions                       |
| tape       | what the public knows of a symbol                                |
| candles    | candles by the minute and longer                                 |
| quotes     | market data over REST                                            |
| desk       | a client's own affairs over REST                                 |
| paging     | lists over REST                                                  |
| rest       | routes, limits, envelopes                                        |
| signing    | keys, signatures, receive windows                                |
| connection | connections, and requests that all streams answer                |
| stream     | the public WebSocket                                             |
| private    | the private WebSocket, disconnect-cancel-all                     |
| trade      | order entry over WebSocket                                       |
| faults     | faults by command and by seed                                    |
| control    | the endpoint that commands them                                  |
| bench      | the sandbox under load                                           |
| server     | the endpoints, and the clock of the world                        |
| listing    | limits of symbols                                                |
| figures    | decimal strings                                                  |
| refusal    | how the venue says no                                            |
"""
