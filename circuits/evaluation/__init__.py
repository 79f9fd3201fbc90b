"""What a circuit is worth: faithfulness, minimality, tests of hypotheses, comparison with other tasks, the truth."""
