output "identifier" {
  description = "The database's identifier."
  value       = aws_db_instance.this.identifier
}

output "connection" {
  description = "How the instance reaches the database, and the parameter that holds the password."
  value = {
    host               = aws_db_instance.this.address
    port               = aws_db_instance.this.port
    name               = aws_db_instance.this.db_name
    user               = aws_db_instance.this.username
    password_parameter = aws_ssm_parameter.password.name
    password_arn       = aws_ssm_parameter.password.arn
  }
}
