"""Every method side by side: plan.py reads a benchmark's file, tables.py erases, samples, measures, attacks.py says what is attacked,
costs.py measures what each system takes, page.py writes the report, portraits.py makes the embedded model's workspace.

And what the loops cost, beside plain loops written down from the papers: models.py builds random models of three sizes, reference.py
has the plain loops, arm.py measures one loop in a process of its own, speed.py runs them all and makes the table.

And what a labeling server holds: load.py, run by ui/load.py; and its database when it is large: scale.py, run by ui/scale.py."""
