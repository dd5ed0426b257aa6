"""The statistics of the library by one name: intervals, comparisons, numbers over seeds, power and pass@k.

*Items* are the unit for a claim about one checkpoint (``intervals``, paired in ``pairs``), *training seeds* for a claim
about a method (``across_seeds``); ``power`` says beforehand what either can show. This file owns no function.
"""

from __future__ import annotations

from twoclock.measure.across_seeds import geometric_ratio as geometric_ratio
from twoclock.measure.across_seeds import iqm as iqm
from twoclock.measure.across_seeds import ratio_of_means as ratio_of_means
from twoclock.measure.across_seeds import t_interval as t_interval
from twoclock.measure.intervals import Interval as Interval
from twoclock.measure.intervals import bootstrap_interval as bootstrap_interval
from twoclock.measure.intervals import clopper_pearson as clopper_pearson
from twoclock.measure.intervals import constant_interval as constant_interval
from twoclock.measure.intervals import mean_interval as mean_interval
from twoclock.measure.intervals import resampled_means as resampled_means
from twoclock.measure.intervals import unknown as unknown
from twoclock.measure.intervals import wilson as wilson
from twoclock.measure.pairs import cluster_difference as cluster_difference
from twoclock.measure.pairs import cluster_mean as cluster_mean
from twoclock.measure.pairs import cluster_ratio as cluster_ratio
from twoclock.measure.pairs import paired_bootstrap_p as paired_bootstrap_p
from twoclock.measure.pairs import paired_difference as paired_difference
from twoclock.measure.pairs import paired_permutation_p as paired_permutation_p
from twoclock.measure.power import ItemsNeeded as ItemsNeeded
from twoclock.measure.power import detectable_difference as detectable_difference
from twoclock.measure.power import discordance_of as discordance_of
from twoclock.measure.power import items_needed as items_needed
from twoclock.measure.power import items_needed_for_gap as items_needed_for_gap
from twoclock.measure.power import items_needed_unpaired as items_needed_unpaired
from twoclock.measure.power import items_table as items_table
from twoclock.measure.sampling import chance_at_k as chance_at_k
from twoclock.measure.sampling import pass_at_k as pass_at_k
from twoclock.measure.sampling import pass_at_k_interval as pass_at_k_interval
from twoclock.measure.sampling import pass_power_k as pass_power_k
