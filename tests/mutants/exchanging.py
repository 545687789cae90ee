"""Mutants of exchanges: rounds, means, weights, memories of buckets, replay and its clock."""

from tests.mutants.base import within

EXCHANGE = "tests/test_exchange.py"
HOOKS = "tests/distributed/test_ddp_hooks.py"
REBUILT = f"{HOOKS}::test_nothing_is_lost_when_buckets_are_rebuilt"
CLOCK = "tests/test_clock.py"

fusing = within("compressors/fusing.py", EXCHANGE)
memories = within("memories.py", REBUILT)
network = within("network.py", "tests/test_network.py", "tests/test_ranking.py")
replaying = within("replaying.py", CLOCK, "tests/test_replaying.py")
workers = within("replaying.py", "tests/test_workers_replay.py")
switching = within("lowrank/switching.py", "tests/lowrank/test_switching.py")

MUTANTS = (
    fusing("request.tensor.dtype, request.levels)", "request.tensor.dtype)"),
    fusing("request.op, request.tensor.dtype", "request.tensor.dtype"),
    fusing("(request.op, request.tensor.dtype, request", "(request.op, request"),
    memories("        self._split_up(keys)\n", ""),
    replaying("        encoding += seconds\n", "        encoding = seconds\n"),
    replaying("return encoding, seconds, found.state", "return encoding, encoding, found.state"),
    replaying("median(encodings[WARM_UP:])", "median(encodings)"),
    replaying("median(decodings[WARM_UP:])", "median(decodings)"),
    replaying("median(decodings[WARM_UP:])", "median(encodings[WARM_UP:])"),
    replaying("median(encodings[WARM_UP:])", "fmean(encodings[WARM_UP:])"),
    replaying("median(encodings[WARM_UP:])", "min(encodings[WARM_UP:])"),
    replaying("if i > WARM_UP + 1 and", "if i > WARM_UP and"),
    replaying("known[-len(known) // 4 :]", "known[-len(known) // 2 :]"),
    replaying("max(STEPS_TO_SETTLE, 1 / target_ratio)", "STEPS_TO_SETTLE"),
    replaying("abs(trend) * len(last)", "trend * len(last)"),
    replaying("compressor.gamma * state.residual + grad", "state.residual + grad"),
    workers("double().mean(0)", "double().sum(0)"),
    workers("nmse * _agreement(mean, grads)", "nmse"),
    workers("fp16=n > 1", "fp16=n > 9"),
    switching("np.abs(slopes[-LATEST:]).mean()", "np.abs(slopes[-LATEST:].mean())"),
    switching("2 / (SPAN + 1)", "1 / (SPAN + 1)"),
    network("nbytes / self.workers / self.bandwidth", "nbytes / self.bandwidth"),
    network("(self.workers - 1) * (rounds", "self.workers * (rounds"),
    network("(self.workers - 1) * (rounds * self.latency", "(self.workers - 1) * (self.latency"),
    network("2 * hops * (rounds * self.latency", "2 * hops * (self.latency"),
    network("2 * hops * (rounds", "hops * (rounds"),
)
