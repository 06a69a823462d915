"""Stages that run as jobs of a Kubernetes cluster: what makes such a job, follows it, and brings home what it made."""
