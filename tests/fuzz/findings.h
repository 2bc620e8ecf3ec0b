/* tests/fuzz/findings.h - what fuzzing has found, as rows that tests/test_fuzz.c replays on every run.
 * SPDX-License-Identifier: MIT
 * target, input in hex, what it was.  The targets print such rows themselves. */
static const struct findings_row {
    const char *target, *input, *what;
} findings[] = {
    {"capacity", "c626614312c03523", "weights of FLT_MAX gave an infinite sum"},
    {"balance", "f702bcbe28bc8bc7", "subnormal loads gave an imbalance above n"},
    {"split", "bf6a4b6c85ad3c6b", "a load of 3e-5 beside one of 1e3 was shared out to 1e-9 of it only"},
    {"forward", "897794e5fa54ffe0", "an input of FLT_MAX"},
    {"route", "c3f9dd4ee4ef2f6d", "a logit and its bias of FLT_MAX added up to infinity, the weight to NaN"},
    {"place", "a6d3b908eb3924c7", "loads near 1e308: node_imbalance of best's result was not a number"},
    {"place", "e38e6da197742c81", "the same, maximum 6e307"},
    {"place", "80dbd9d8b02920d5", "the same, an imbalance of 4/3"},
    {"place", "064e00b6b61fee6f", "rebalance made 2 moves of 1 allowed: speeds put a layer above 2 D times its mean"},
    {"place", "71c3592dbce46273", "the same"},
    {"place", "9cddcb3ab4c2bb11", "the same, 4 of 2"},
    {"place", "d1083e3e5e3d86b7", "the same, 2 of 1"},
    {"split", "236044fbe95923e7", "loads near 1e308 gave shares that are not numbers"},
    {"split", "476ce0f61f6237f1", "the same"},
    {"split", "8e336cb2c97547bd", "the same"},
    {"diagnose", "fe270755c093b7b1", "break_even_steps was infinite where a step saves next to nothing"},
    {"diagnose", "5e22ba688aac9bb3", "the same"},
    {"diagnose", "80296666d604f1ce", "the same"},
    {"sim", "8ecd09a15c318905", "TARGET with a negative hot device left ids unwritten"},
    {"cost", "1b2bb962ab8ce990", "expected bytes took more than 20 s with a huge number of devices or groups"},
    {"cost", "3ca55d588e0a82ac", "the same"},
};
