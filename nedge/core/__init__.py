"""The sans-I/O core: packets and a time go in, verdicts and events come out.

Nothing here opens a file or socket, reads a clock or starts a process. The way of a packet:

    engine.Engine.packet   the whole journey, in its body
    packet.decode          bytes -> Packet (or a counted reason why not)
    table.FlowTable        Packet -> Flow, and the timers of flows
    walk                   going through all flows, step by step
    flow.Flow              counters, TCP state, statuses and scores
    stream, watch          TCP in order; every name a DNS or HTTP flow asks for
    facts                  what inspection (nDPI) is asked and answers, as protocols
    hooks                  what user scripts are called with, as protocols
    hosts, lists           both ends of a flow, and what is known of them
    judge.Judge            runs hooks, keeps scores, judges flows anew
    verdict.decide         pass, drop or reject, and why: the one place
    offload, marks         what of a flow the kernel takes over, and how it is told
"""
