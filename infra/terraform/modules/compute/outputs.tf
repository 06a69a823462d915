output "instance_id" {
  description = "The instance."
  value       = aws_instance.this.id
}

output "admin_password_parameter" {
  description = "Name of the parameter that holds the password of MLflow's user admin."
  value       = aws_ssm_parameter.admin_password.name
}
