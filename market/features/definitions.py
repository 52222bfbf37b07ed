"""The table of features: formula, rationale and the sign that is expected of each.

Rules of the table: no feature is a price level; quantities are divided by depth or volume, changes
are in bps or logs, so that one definition serves every symbol and year.

    name  sign  source
        expression (market.features.expression)
        | rationale

A name ending in a number has that window in seconds; ``_now`` means the last second. A name with
``{15,60}`` defines two features, and ``{}`` below it for the number. The sign is that of the
correlation with the next return: + or -, 0 for a feature that conditions others, ? where the
literature disagrees.
"""

from __future__ import annotations

from typing import Final

#: Row expressions that features share.
TERMS: Final[dict[str, str]] = {
    "ret": "log(div(mid_close, lag(mid_close, 1))) * 1e4",
    "abs_ret": "abs(ret)",
    "ofi_all": "(ofi_1 + ofi_2 + ofi_3 + ofi_4 + ofi_5"
    " + ofi_6 + ofi_7 + ofi_8 + ofi_9 + ofi_10) / 10",
    "ofi_gross": "abs(ofi_1)",
    "queue": "div(bid_q1_mean - ask_q1_mean, bid_q1_mean + ask_q1_mean)",
    "ladder": "div(bid_q10 - ask_q10, bid_q10 + ask_q10)",
    "depth": "bid_depth + ask_depth",
    "touch": "bid_q1_mean + ask_q1_mean",
    "steepness": "bid_slope + ask_slope",
    "log_depth": "log(bid_q10 + ask_q10)",
    "log_bids": "log(bid_q10)",
    "log_asks": "log(ask_q10)",
    "bid_move": "log_bids - lag(log_bids, 1)",
    "ask_move": "log_asks - lag(log_asks, 1)",
    "depth_move": "log_depth - lag(log_depth, 1)",
    "spread_move": "spread_mean - lag(spread_mean, 1)",
    "micro_gap": "log(div(micro_close, mid_close)) * 1e4",
    "sweep": "sweep_buy_100k + sweep_sell_100k",
    "adds": "bid_add + ask_add",
    "cancels": "bid_cancel + ask_cancel",
    "cancels_1": "bid_cancel_1 + ask_cancel_1",
    "adds_1": "bid_add_1 + ask_add_1",
    "trades": "buy_n + sell_n",
    "volume": "buy_qty + sell_qty",
    "flow": "buy_qty - sell_qty",
    "toxic": "abs(flow)",
    "turnover": "buy_notional + sell_notional",
    "rpi": "rpi_buy_qty + rpi_sell_qty",
    "ret_square": "ret * ret",
    "variance": "rv * 1e8",
    "bipower": "bv * 1e8",
    "satchell": "(log(div(mid_high, mid_close)) * log(div(mid_high, mid_open))"
    " + log(div(mid_low, mid_close)) * log(div(mid_low, mid_open))) * 1e8",
    "premium": "log(div(mid_close, index_price)) * 1e4",
    "liquidated": "liq_long + liq_short",
}

TABLE: Final = """
== order flow

ofi_now  +  Cont, Kukanov & Stoikov 2014
    div(ofi_1, depth_norm)
    | Net demand at the best quotes in the last second, in units of average depth.
ofi_{15,60,300,900}  +  Cont, Kukanov & Stoikov 2014
    div(sum(ofi_1, {}), mean(depth_norm, {}))
    | Order-flow imbalance at the best quotes over {} s, in units of average depth.
ofi_level_{2,3,5,7,10}_60  +  Xu, Gould & Howison 2018
    div(sum(ofi_{}, 60), mean(depth_norm, 60))
    | Order-flow imbalance at level {}: intentions that have not reached the touch.
ofi_level_{2,5,10}_300  +  Xu, Gould & Howison 2018
    div(sum(ofi_{}, 300), mean(depth_norm, 300))
    | Order-flow imbalance at level {} over 300 s: intentions that last.
ofi_integrated_{15,60,300}  +  Cont, Cucuringu & Zhang 2023
    div(sum(ofi_all, {}), mean(depth_norm, {}))
    | Mean of ten levels' imbalance over {} s: nearly their first principal component.
ofi_component_60  +  Cont, Cucuringu & Zhang 2023
    div(slope(ofi_1, ofi_all, 300) * sum(ofi_1, 60) + slope(ofi_2, ofi_all, 300) * sum(ofi_2, 60)
        + slope(ofi_3, ofi_all, 300) * sum(ofi_3, 60) + slope(ofi_4, ofi_all, 300) * sum(ofi_4, 60)
        + slope(ofi_5, ofi_all, 300) * sum(ofi_5, 60) + slope(ofi_6, ofi_all, 300) * sum(ofi_6, 60)
        + slope(ofi_7, ofi_all, 300) * sum(ofi_7, 60) + slope(ofi_8, ofi_all, 300) * sum(ofi_8, 60)
        + slope(ofi_9, ofi_all, 300) * sum(ofi_9, 60)
        + slope(ofi_10, ofi_all, 300) * sum(ofi_10, 60),
        10 * mean(depth_norm, 60))
    | Ten levels' imbalance, weighted by their covariances with the mean level: one step of the
    | power method towards the first principal component, whose weights sum to ten here.
ofi_turn_60  +  practice
    div(4 * sum(ofi_1, 15) - sum(ofi_1, 60), sum(ofi_gross, 60))
    | Flow of the last 15 s against the pace of the minute, over the minute's gross flow: the flow
    | accelerates or turns.
ofi_impact_900  0  Cont, Kukanov & Stoikov 2014
    slope(ret, ofi_1, 900) * mean(depth_norm, 900)
    | Price impact of one average depth of flow, bps: how thin the book really is.
ofi_unexplained_60  -  Cont, Kukanov & Stoikov 2014
    sum(ret, 60) - slope(ret, ofi_1, 900) * sum(ofi_1, 60)
    | Move of the minute that its flow does not explain, bps; it tends to be given back.

== imbalance

queue_now  +  Gould & Bonart 2016
    div(bid_q1 - ask_q1, bid_q1 + ask_q1)
    | Excess of bids over asks on the best quotes: the thinner side gives way first.
imbalance_{5,10}_now  +  Gould & Bonart 2016
    div(bid_q{} - ask_q{}, bid_q{} + ask_q{})
    | Excess of bids over asks on {} levels: the thinner side gives way first.
imbalance_{1,2,3}bps_now  +  Gould & Bonart 2016
    div(bid_d{} - ask_d{}, bid_d{} + ask_d{})
    | Excess of bids over asks within {} bps of mid: the thinner side gives way first.
imbalance_all_now  +  Gould & Bonart 2016
    div(bid_depth - ask_depth, bid_depth + ask_depth)
    | Excess of bids over asks on all displayed levels: the thinner side gives way first.
queue_{15,60,300}  +  Gould & Bonart 2016
    mean(queue, {})
    | Time-weighted imbalance of the best quotes over {} s: pressure that lasts.
imbalance_10_{60,300}  +  Gould & Bonart 2016
    mean(ladder, {})
    | Imbalance of ten levels, mean of {} s: pressure that lasts.
imbalance_10_turn_15  +  practice
    ladder - lag(ladder, 15)
    | Change of the ten-level imbalance over 15 s.
imbalance_10_z_300  +  practice
    div(ladder - mean(ladder, 300), std(ladder, 300))
    | Ten-level imbalance against its own last 300 s: some books lean all day.
depth_rel_900  0  practice
    log(div(depth, mean(depth, 900)))
    | Displayed depth against its mean of 900 s: moves are larger in a thin book.
touch_rel_900  0  practice
    log(div(touch, mean(touch, 900)))
    | Quantity at the best quotes against its mean of 900 s: the touch is about to give way.
near_share_now  0  practice
    log(div(bid_d1 + ask_d1, depth))
    | Share of the displayed depth that stands within 1 bps of mid, log: patience of the makers.
depth_turn_60  0  practice
    log_depth - lag(log_depth, 60)
    | Growth of ten-level depth over 60 s: liquidity is provided or withdrawn.

== micro-price

micro_now  +  Stoikov 2018
    micro_gap
    | Micro-price above mid, bps: where the next mid is expected.
micro_{15,60}  +  Stoikov 2018
    mean(micro_gap, {})
    | Micro-price above mid, mean of {} s.
micro_move_15  ?  Stoikov 2018
    log(div(micro_close, lag(micro_close, 15))) * 1e4
    | Move of the micro-price over 15 s, bps: less bounce than the mid's.
vamp_now  +  Stoikov 2018
    log(div(vamp_close, mid_close)) * 1e4
    | Price weighted by the opposite quantities of five levels, above mid, bps.
twap_gap_now  ?  practice
    log(div(mid_close, mid_twap)) * 1e4
    | Close above the second's time-weighted mid, bps: the move inside the last second.

== shape

slope_tilt_now  +  Naes & Skjeltorp 2006
    log(div(bid_slope, ask_slope))
    | Steeper bids than asks: selling moves the price less than buying.
slope_rel_900  0  Naes & Skjeltorp 2006
    log(div(steepness, mean(steepness, 900)))
    | Steepness of both sides against its mean of 900 s: volatility is low in a steep book.
reach_tilt_now  +  practice
    log(div(ask_reach, bid_reach))
    | The displayed asks are spread further than the bids: less resistance above.
convexity_tilt_now  ?  practice
    div(bid_convexity, bid_slope) - div(ask_convexity, ask_slope)
    | Depth that grows away from the touch on bids rather than asks, 1/bps.
gap_tilt_60  +  Farmer et al. 2004
    div(sum(ask_gap, 60) - sum(bid_gap, 60), sum(ask_gap, 60) + sum(bid_gap, 60))
    | Wider gaps behind the best ask than behind the best bid: less resistance above.
empty_rel_900  0  Farmer et al. 2004
    empty_share - mean(empty_share, 900)
    | Holes near the touch against the mean of 900 s.
sweep_tilt_{10k,100k,1m}_now  -  practice
    div(sweep_sell_{} - sweep_buy_{}, sweep_sell_{} + sweep_buy_{})
    | Selling {} of notional costs more than buying it.
sweep_growth_now  0  Kyle & Obizhaeva 2016
    log(div(sweep_buy_1m + sweep_sell_1m, sweep_buy_10k + sweep_sell_10k))
    | Cost of a round trip of 1,000,000 over that of 10,000, log: how fast impact grows with size.
sweep_rel_900  0  practice
    log(div(sweep, mean(sweep, 900)))
    | Cost of a round trip of 100,000 against its mean of 900 s.

== stability

spread_bps_now  0  practice
    spread_bps
    | Spread over mid at the close, bps.
spread_one_60  0  practice
    mean(spread_one, 60)
    | Share of the minute with a spread of one tick.
spread_vol_60  0  practice
    std(spread_mean, 60)
    | Standard deviation of the spread over the minute, ticks.
cancel_ratio_60  0  Hasbrouck & Saar 2009
    log(div(sum(cancels, 60), sum(adds, 60)))
    | Cancels against additions: liquidity leaves.
cancel_rate_60  0  Hasbrouck & Saar 2009
    log(div(sum(cancels, 60), mean(depth_norm, 60)))
    | Cancels of the minute in units of average depth, log: how often the book is renewed.
cancel_near_60  0  Hasbrouck & Saar 2009
    div(sum(cancels_1, 60), sum(cancels, 60))
    | Share of cancels at the touch: makers step back from the price.
cancel_tilt_60  +  practice
    div(sum(ask_cancel, 60) - sum(bid_cancel, 60), sum(cancels, 60))
    | Asks are pulled more than bids.
add_tilt_60  +  practice
    div(sum(bid_add, 60) - sum(ask_add, 60), sum(adds, 60))
    | Bids are added more than asks.
cancel_tilt_touch_15  +  practice
    div(sum(ask_cancel_1, 15) - sum(bid_cancel_1, 15), sum(cancels_1, 15))
    | The best ask is pulled more than the best bid.
refill_tilt_15  +  Obizhaeva & Wang 2013
    div(sum(bid_add_1, 15) - sum(ask_add_1, 15), sum(adds_1, 15))
    | The best bid is refilled more than the best ask.
refill_share_60  0  Large 2007
    log(div(sum(adds_1, 60), sum(volume, 60)))
    | What was put back at the touch over what was traded, log: a resilient book refills.
flicker_60  0  Hasbrouck & Saar 2009
    div(sum(flicker, 60), sum(best_changes, 60))
    | Share of best-price moves taken back within 100 ms.
quote_life_now  0  practice
    quote_life
    | Mean log lifetime of best prices: short lives mean an unsettled price.
quote_life_rel_900  0  practice
    quote_life - mean(quote_life, 900)
    | Mean log lifetime of best prices against its mean of 900 s.
update_rel_60  0  practice
    log(div(sum(updates, 60) * 15, sum(updates, 900)))
    | Rate of level updates against that of 900 s, log: makers wake up.
best_moves_rel_60  0  practice
    log(div(sum(best_changes, 60) * 15, sum(best_changes, 900)))
    | Rate of best-price changes against that of 900 s.
updates_per_trade_60  0  Hendershott, Jones & Menkveld 2011
    log(div(sum(updates, 60), sum(trades, 60)))
    | Level updates per trade, log: quoting without trading.
resilience_300  0  Obizhaeva & Wang 2013
    slope(depth_move, lag(log_depth, 1), 300)
    | Pull of ten-level depth back to its mean, per second; near -1 it refills at once.
resilience_tilt_300  +  Large 2007
    slope(ask_move, lag(log_asks, 1), 300) - slope(bid_move, lag(log_bids, 1), 300)
    | Bids are pulled back to their mean faster than asks.
spread_resilience_300  0  Foucault, Kadan & Kandel 2005
    slope(spread_move, lag(spread_mean, 1), 300)
    | Pull of the spread back to its mean, per second; NULL while it does not move.

== cross-level

level_corr_{1,2,5,10}_300  0  Cont, Cucuringu & Zhang 2023
    corr(ofi_{}, ofi_all, 300)
    | Flow at level {} moves with the mean of ten levels: the ladder shifts as one.
level_share_300  0  Kritzman et al. 2011
    (corr(ofi_1, ofi_all, 300) * corr(ofi_1, ofi_all, 300)
        + corr(ofi_2, ofi_all, 300) * corr(ofi_2, ofi_all, 300)
        + corr(ofi_5, ofi_all, 300) * corr(ofi_5, ofi_all, 300)
        + corr(ofi_10, ofi_all, 300) * corr(ofi_10, ofi_all, 300)) / 4
    | Share of the variance of four levels' flow that the mean of ten explains: absorption.
level_lag_300  0  Xu, Gould & Howison 2018
    corr(ofi_10, lag(ofi_1, 1), 300)
    | The tenth level follows the touch of the second before: makers react, rather than lead.
queue_apart_now  ?  practice
    queue - ladder
    | Imbalance of the touch above that of ten levels: the touch speaks against the book.
side_corr_300  0  practice
    corr(bid_move, ask_move, 300)
    | Bid and ask depth grow together (makers) or apart (one-sided pressure).

== trade flow

tfi_{15,60,300,900}  +  Silantyev 2019
    div(sum(flow, {}), sum(volume, {}))
    | Taker buys less sells over traded quantity, {} s.
count_imbalance_60  +  Chordia & Subrahmanyam 2004
    div(sum(buy_n, 60) - sum(sell_n, 60), sum(trades, 60))
    | Number of taker buys less sells over trades: small traders' side.
size_tilt_300  +  practice
    log(div(sum(buy_qty, 300), sum(buy_n, 300))) - log(div(sum(sell_qty, 300), sum(sell_n,
        300)))
    | Mean buy larger than mean sell, log: the large traders' side.
large_share_60  0  practice
    div(max(max_trade, 60), sum(volume, 60))
    | Share of the largest trade in the minute's quantity.
run_now  +  Lillo & Farmer 2004
    sign(run_length) * log(abs(run_length) + 1)
    | Signed log length of the current run of same-side trades: orders being split.
trade_age_now  0  Easley & O'Hara 1992
    log(trade_age_s + 0.01)
    | Log time since the last trade.
volume_rel_60  0  practice
    log(div(sum(volume, 60) * 60, sum(volume, 3600)))
    | Traded quantity of the minute against that of the hour, log.
volume_depth_60  0  practice
    log(div(sum(volume, 60), mean(depth_norm, 60)))
    | Traded quantity of the minute in units of average depth, log: how hard the book is worked.
activity_day_300  0  practice
    log(div(sum(turnover, 300) * 288, turnover_24h))
    | Turnover of 300 s against the pace of the last day, log.
vwap_gap_300  ?  practice
    log(div(mid_close * sum(volume, 300), sum(turnover, 300))) * 1e4
    | Mid above the traded average of 300 s, bps: who traded is in profit.
rpi_share_300  0  Boehmer et al. 2021
    div(sum(rpi, 300), sum(volume, 300))
    | Share of volume that matched RPI orders: retail takers.
hawkes_tilt_{1,10,100}_now  +  Bacry, Mastromatteo & Muzy 2015
    div(hawkes_buy_{} - hawkes_sell_{}, hawkes_buy_{} + hawkes_sell_{})
    | Excited buy less sell intensity with a memory of {} s: trades beget trades.
hawkes_burst_now  0  Bacry, Mastromatteo & Muzy 2015
    log(div((hawkes_buy_1 + hawkes_sell_1) * 100 + 1, hawkes_buy_100 + hawkes_sell_100 + 1))
    | Trade intensity of the last second against that of the last 100 s, log.
branching_900  0  Hardiman & Bouchaud 2014
    1 - sqrt(div(mean(trades, 900), std(trades, 900) * std(trades, 900)))
    | Branching ratio of trades from the dispersion of their counts: 1 when all are answers.

== toxicity

vpin_{300,900}  0  Easley, Lopez de Prado & O'Hara 2012
    div(sum(toxic, {}), sum(volume, {}))
    | One-sidedness of trading over {} s in buckets of one second, on true sides.
vpin_volume_now  0  Easley, Lopez de Prado & O'Hara 2012
    vpin
    | One-sidedness of buckets of equal volume, on true sides.
vpin_volume_rel_900  0  Easley, Lopez de Prado & O'Hara 2012
    vpin - mean(vpin, 900)
    | One-sidedness of buckets of equal volume against its mean of 900 s.
kyle_900  0  Kyle 1985
    slope(ret, flow, 900) * sum(volume, 900) / 900
    | Impact of one average second's volume, bps.
flow_fit_900  0  Kyle 1985
    corr(ret, flow, 900)
    | How much of the price's path trade flow explains: informed trading.
amihud_rel_60  0  Amihud 2002
    log(div(div(sum(abs_ret, 60), sum(turnover, 60)),
        div(sum(abs_ret, 900), sum(turnover, 900))))
    | Move per traded notional in the minute against that of 900 s, log.

== volatility

realised_vol_{60,300,900,3600}  0  Andersen et al. 2003
    sqrt(sum(variance, {}))
    | Realised volatility over {} s, bps.
vol_ratio_60_900  0  Corsi 2009
    log(div(sum(variance, 60) * 15, sum(variance, 900)))
    | Variance of the minute against that of 900 s, log.
vol_ratio_300_3600  0  Corsi 2009
    log(div(sum(variance, 300) * 12, sum(variance, 3600)))
    | Variance of 300 s against that of the hour, log.
vol_of_vol_900  0  Corsi 2009
    div(std(variance, 900), mean(variance, 900))
    | Standard deviation of the second's variance over its mean: volatility comes in bursts.
satchell_300  0  Rogers & Satchell 1991
    log(div(sum(satchell, 300), sum(variance, 300)))
    | Variance from the seconds' ranges over that from every quote, log.
jump_300  0  Barndorff-Nielsen & Shephard 2004
    div(greatest(sum(variance, 300) - sum(bipower, 300), 0), sum(variance, 300))
    | Share of variance from jumps.
semivariance_300  ?  Barndorff-Nielsen, Kinnebrock & Shephard 2010
    div(sum(rv_up, 300) - sum(rv_down, 300), sum(rv_up, 300) + sum(rv_down, 300))
    | Upward less downward share of variance.
range_300  0  Parkinson 1980
    log(div(log(div(max(mid_high, 300), min(mid_low, 300))) * 1e4, sqrt(sum(variance, 300))))
    | Range over realised volatility, log: trending or bouncing.
range_place_300  ?  practice
    div(mid_close - min(mid_low, 300), max(mid_high, 300) - min(mid_low, 300))
    | Place of mid in the range of 300 s, 0 to 1.
signature_300  0  Andersen et al. 2000
    log(div(sum(ret_square, 300), sum(variance, 300)))
    | Variance at one second over variance at every quote, log: noise and bounce.

== return

return_now  ?  practice
    ret
    | Return of the last second, bps.
return_{5,15,60,300,900}  ?  Jegadeesh 1990
    log(div(mid_close, lag(mid_close, {}))) * 1e4
    | Return over {} s, bps: momentum or reversal.
bounce_300  0  Roll 1984
    corr(ret, lag(ret, 1), 300)
    | Autocorrelation of one-second returns: negative when prices bounce.

== perpetual

basis_now  -  He, Manela, Ross & von Wachter 2022
    basis_bps
    | Mark over index, bps: longs pay up.
premium_now  -  He, Manela, Ross & von Wachter 2022
    premium
    | Mid over index, bps: the perpetual is ahead of the spot markets.
premium_turn_60  -  practice
    premium - lag(premium, 60)
    | Change of the premium over 60 s, bps.
premium_z_900  -  practice
    div(premium - mean(premium, 900), std(premium, 900))
    | Premium against its own last 900 s.
funding_now  -  He, Manela, Ross & von Wachter 2022
    funding_mean * 1e4
    | Predicted funding rate over the last second, bps: the crowded side pays.
funding_gap_900  -  He, Manela, Ross & von Wachter 2022
    mean(premium, 900) - funding_mean * 1e4
    | Premium of 900 s above the predicted funding rate, bps: the rate is going to rise.
funding_due_now  -  practice
    funding_mean * 1e4 * clip(1 - funding_in_s / 28800, 0, 1)
    | Funding rate times the share of an eight-hour interval that has passed, bps.
oi_change_{60,300}  0  Bessembinder & Seguin 1993
    log(div(open_interest, lag(open_interest, {}))) * 1e4
    | Growth of open interest over {} s, bps: positions are opened.
oi_side_300  ?  practice
    sign(log(div(mid_close, lag(mid_close, 300)))) * log(div(open_interest, lag(open_interest,
        300))) * 1e4
    | Growth of open interest with the sign of the return: new longs or new shorts, bps.
oi_turnover_300  0  Bessembinder & Seguin 1993
    log(div(sum(volume, 300), open_interest))
    | Traded quantity over open interest, log: positions change hands.
liq_tilt_300  ?  Brunnermeier & Pedersen 2009
    div(sum(liq_short, 300) - sum(liq_long, 300), sum(liquidated, 300))
    | Shorts rather than longs are liquidated: forced buying, then exhaustion.
liq_share_300  0  Brunnermeier & Pedersen 2009
    div(sum(liquidated, 300), sum(turnover, 300))
    | Liquidated notional over turnover.

== leader

lead_return_{5,15,60}  +  Hayashi & Yoshida 2005; Hoffmann, Rosenbaum & Yoshida 2013
    log(div(lead(mid_close), lag(lead(mid_close), {}))) * 1e4
    | Leader's return over {} s, bps.
lead_catch_up_15  +  Hayashi & Yoshida 2005; Hoffmann, Rosenbaum & Yoshida 2013
    slope(ret, lead(ret), 900) * sum(lead(ret), 15) - sum(ret, 15)
    | The leader's move of 15 s, scaled by beta, that is not in the price yet, bps.
lead_ofi_{15,60}  +  Cont, Cucuringu & Zhang 2023
    lead(div(sum(ofi_1, {}), mean(depth_norm, {})))
    | Leader's order-flow imbalance over {} s.
lead_tfi_60  +  Cont, Cucuringu & Zhang 2023
    lead(div(sum(flow, 60), sum(volume, 60)))
    | Leader's trade-flow imbalance over 60 s.
lead_queue_now  +  Gould & Bonart 2016
    lead(div(bid_q1 - ask_q1, bid_q1 + ask_q1))
    | Leader's imbalance of the best quotes.
lead_imbalance_10_now  +  Gould & Bonart 2016
    lead(ladder)
    | Leader's imbalance of ten levels.
lead_micro_now  +  Stoikov 2018
    lead(micro_gap)
    | Leader's micro-price above its mid, bps.
lead_corr_900  0  Hayashi & Yoshida 2005; Hoffmann, Rosenbaum & Yoshida 2013
    corr(ret, lead(ret), 900)
    | Correlation with the leader: one factor, or on its own.
lead_lag_900  0  Hayashi & Yoshida 2005; Hoffmann, Rosenbaum & Yoshida 2013
    corr(ret, lag(lead(ret), 1), 900)
    | Correlation with the leader's previous second: it really leads.
lead_strength_900  0  Huth & Abergel 2014
    abs(corr(ret, lag(lead(ret), 1), 900)) - abs(corr(lead(ret), lag(ret, 1), 900))
    | Which of the two leads the other by a second, and how clearly.
lead_vol_ratio_300  0  practice
    log(div(sum(variance, 300), lead(sum(variance, 300))))
    | Variance against the leader's over 300 s, log.

== time

day_sin  0  Andersen & Bollerslev 1997
    sin(day_s * (6.283185307179586 / 86400))
    | Time of day as a sine: sessions differ.
day_cos  0  Andersen & Bollerslev 1997
    cos(day_s * (6.283185307179586 / 86400))
    | Time of day as a cosine: sessions differ.
funding_sin  0  practice
    sin(funding_in_s * (6.283185307179586 / 28800))
    | Time to funding as a sine of eight hours.
funding_cos  0  practice
    cos(funding_in_s * (6.283185307179586 / 28800))
    | Time to funding as a cosine of eight hours.
"""
