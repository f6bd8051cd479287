"""What the loops cost, beside plain loops written down from the papers: models.py builds random models of three sizes, reference.py
has the plain loops, arm.py measures one loop in a process of its own, speed.py runs them all and makes the table."""
