"""Factorised training: models whose matrices are products of two factors (Pufferfish)."""

from gradstats.lowrank.convolutions import LowRankConv1d, LowRankConv2d
from gradstats.lowrank.factorizing import Change, Factorization, factorize
from gradstats.lowrank.filling import balanced
from gradstats.lowrank.layers import LowRankAttention, LowRankLinear
from gradstats.lowrank.recurrent import LowRankGRU, LowRankLSTM
from gradstats.lowrank.switching import RankTracker, VanillaWarmUp, stable_rank
from gradstats.lowrank.warming import warm_start

__all__ = [
    "Change",
    "Factorization",
    "LowRankAttention",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankGRU",
    "LowRankLSTM",
    "LowRankLinear",
    "RankTracker",
    "VanillaWarmUp",
    "balanced",
    "factorize",
    "stable_rank",
    "warm_start",
]
