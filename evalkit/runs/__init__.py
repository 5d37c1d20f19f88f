"""Everything joined: a run, rescoring, certificates, bundles, plans, sweeps, watching."""
