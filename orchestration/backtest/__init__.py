"""The backtest: the live trader over recorded events, with its books kept at every fee row.

    lake's events ─► features ─► predictions, once, in processes by symbol        (foresight)
      (span)   └───► seconds of all symbols ─► live.core ─► paper venue, in processes by run
                                                  └─► ledger ─► blotter ─► figures ─► report, tear sheet
                                                        (run)

`live.core` and `live.paper` decide, order, fill and limit, fed with the same rows at the same times as live:
the same capture gives the same decisions, orders and fills here and under `l2 live --venue paper`. This
package adds reading the lake and book-keeping.

Assumptions, which every report states: a decision at t uses what was received before t, and its orders
leave at t; computing takes no time beyond the entry latency; our orders have no market impact; the queue
model is the settings', and the run is repeated at the bounds of all models; when a book is lost, resting
orders and positions stay until it is back, and are then closed.
"""
