"""The paper's two observations measured on trained classifiers, and what a threat does to them in detail."""
