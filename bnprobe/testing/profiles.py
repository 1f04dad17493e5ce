"""How many examples each law is tried on: profiles of hypothesis, by the names ``bnprobe`` and ``bnprobe-fast``."""

from hypothesis import HealthCheck, Phase, settings

__all__ = ["for_law"]

# Ours: a run of one layer takes under a minute with the first and under ten seconds with the second.
_EXAMPLES = {"bnprobe": 60, "bnprobe-fast": 4}
_FOR_SMALLER = 60  # ours: examples in which to look for one that is smaller than the known one

for _name, _count in _EXAMPLES.items():
    settings.register_profile(
        _name,
        max_examples=_count,
        deadline=None,  # the first call of a kernel may compile it
        database=None,  # laws share one test function, and so one key
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def for_law(profile: str | None, at_most: int | None, modes: int = 1, *, for_smaller: bool = False) -> settings | None:
    """Settings of one law: those of the profile, or of the profile of the kit that is loaded, else ``bnprobe``.

    Args:
        profile: name; None for the loaded one.
        at_most: examples of the law, whatever the profile; 0 for none but those that are always tried.
        modes: over which the examples are spread.
        for_smaller: an example that breaks the law is known, and a smaller one is wanted.

    Returns:
        None where there is nothing to draw: the law is about given examples, or the profile does not shrink.
    """
    if at_most == 0:
        return None
    if profile is None:
        loaded = settings.get_current_profile_name()
        profile = loaded if loaded in _EXAMPLES else "bnprobe"
    chosen = settings.get_profile(profile)
    count = chosen.max_examples if at_most is None else min(at_most, chosen.max_examples)
    phases = chosen.phases if at_most != 1 else [one for one in chosen.phases if one is not Phase.shrink]
    if for_smaller:
        if Phase.shrink not in phases:
            return None
        count = max(count, _FOR_SMALLER)
    return settings(chosen, max_examples=-(-count // modes), database=None, phases=phases)
