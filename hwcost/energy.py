"""Modelled energy of an operator. Nothing here is measured: always show these joules as "modelled".

Constants of M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, 45 nm, 0.9 V:
arithmetic per operation, a 1 MB cache per 64-bit access, DRAM per 64-bit access (the low end of its range).
Activations pass through the cache, weights come from DRAM once per execution. Instruction fetch and decode are left
out, so these are a floor that ranks operators, not a battery's drain.
"""

from hwcost.ops import Operator, Precision, bytes_moved, weight_bytes

ENERGY_LABEL = "modelled (Horowitz, ISSCC 2014, 45 nm)"

_FLOAT_MAC_J = 3.7e-12 + 0.9e-12  # 32-bit float multiply + add
_INT8_MULTIPLY_J, _INT32_ADD_J = 0.2e-12, 0.1e-12
_FLOAT_ADD_J = 0.9e-12
_CACHE_J_PER_BYTE = 100e-12 / 8
_DRAM_J_PER_BYTE = 1.3e-9 / 8


def mac_energy_j(precision: Precision) -> float:
    """Joules of one multiply-accumulate. Float activations compute in float; with 8-bit activations the multiplier
    shrinks with the weight bits (its cost is proportional to the product of the operands' widths)."""
    if precision.activation_bits == 32:
        return _FLOAT_MAC_J
    return _INT8_MULTIPLY_J * precision.weight_bits / 8 + _INT32_ADD_J


def energy_j(op: Operator, precision: Precision) -> float:
    """Modelled joules of one execution on the kernels of `precision` (pass the realised one: 4-bit weights that are
    unpacked to int8 cost what int8 costs)."""
    weights = weight_bytes(op, precision)
    activations = bytes_moved(op, precision) - weights
    if op.macs:
        arithmetic = op.macs * mac_energy_j(precision)
    else:
        per_element = _FLOAT_ADD_J if precision.activation_bits == 32 else _INT32_ADD_J
        arithmetic = max(op.input_elements, op.output_elements) * per_element
    return arithmetic + activations * _CACHE_J_PER_BYTE + weights * _DRAM_J_PER_BYTE
