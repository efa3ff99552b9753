"""Small parts that models are made of."""
