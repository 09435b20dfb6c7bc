"""Random architectures: culux layers, each with its twin in torch's functional form."""
