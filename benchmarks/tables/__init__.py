"""What is generated from the records of methods: run one of these after adding a method."""
