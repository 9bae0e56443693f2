"""Getting a data set's archives from servers, and unpacking them."""
