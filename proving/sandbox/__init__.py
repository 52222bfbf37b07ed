"""A venue on loopback that speaks the Bybit V5 protocol, on the synthetic market's matching engine.

Unmodified clients, pointed here by their documented settings, trade linear perpetuals on a market that is
a function of its seed; `l2 sandbox` serves it.

Supported: REST (market data, order entry, positions, balances, histories and settings, with signatures,
receive windows, rate limits and the venue's error codes), the public stream (books of 1, 50, 200 and 1000
levels, trades, tickers, candles, liquidations, price limits), the private stream, order entry over
WebSocket, disconnect-cancel-all, conditional orders with take-profit, stop-loss and trailing stops,
self-match prevention, and fault injection. Refused: hedge mode, portfolio margin, retail price improvement
orders, and categories other than linear.

Each module imports only those above it:

| module           | contents                                                            |
|------------------|---------------------------------------------------------------------|
| protocol         | refusals, signatures, parameters, decimal strings, pages            |
| listing          | limits and risk tiers of symbols, ticks and lots as decimals        |
| candles          | candles of a price                                                  |
| tape             | public market data of a symbol: books, trades, ticker               |
| accounts         | clients, their orders and records                                   |
| rows             | orders, executions, positions and wallets as the venue writes them  |
| account_book     | what executions, funding and liquidations do to money               |
| private_messages | the messages of the private stream, and when they leave             |
| order_checks     | pre-trade checks                                                    |
| conditional      | conditional orders: triggers, take-profit, stop-loss                |
| exchange         | running markets, clients and orders in simulated time               |
| order_fields     | fields of order requests: each honoured or refused by name          |
| order_entry      | create, amend, cancel and batch requests                            |
| account_requests | a client's account over REST                                        |
| market_requests  | market data over REST                                               |
| streams          | WebSocket connections, the public and private streams               |
| gateway          | routes, authentication, rate limits; REST and WebSocket order entry |
| faults           | fault injection by command and by seed                              |
| past             | frames of the recent past, for clients that come                    |
| staging          | liquidations, people's orders and states of accounts, by command    |
| venue            | exchange, streams, gateway and faults together, without a network   |
| virtual          | a venue in simulated time alone                                     |
| control          | the venue over HTTP, and its control endpoints                      |
| server           | all endpoints on one port, and the simulated clock                  |
"""
