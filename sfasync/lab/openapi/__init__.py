"""The platform's REST interface, as far as it is documented, in front of the lab's machines."""
