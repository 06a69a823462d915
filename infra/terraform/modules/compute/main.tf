# One small machine that nothing can reach from outside: MLflow on its own loopback, pipelines when asked for, and off
# when idle. Whatever it makes goes to the bucket and the database, so that it can be replaced at any time.

# Amazon Linux 2023: has the Session Manager's agent and the AWS command line, and packages of Python 3.11.
data "aws_ssm_parameter" "image" {
  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

resource "aws_instance" "this" {
  #checkov:skip=CKV_AWS_88:The public address is for going out, a NAT gateway would cost 33 USD a month; nothing may come in.
  #checkov:skip=CKV_AWS_126:Metrics of every minute cost 2 USD a month; those of every five are free.
  ami                    = data.aws_ssm_parameter.image.value
  instance_type          = var.instance_type
  subnet_id              = var.subnet_id
  vpc_security_group_ids = [var.security_group_id]
  iam_instance_profile   = aws_iam_instance_profile.this.name

  associate_public_ip_address          = true
  ebs_optimized                        = var.instance_type == "t3.micro" # t2 knows no such thing
  instance_initiated_shutdown_behavior = "stop"                          # how the idle timer stops it

  user_data                   = local.user_data
  user_data_replace_on_change = true # it is read at the first start alone

  credit_specification {
    cpu_credits = var.cpu_credits
  }

  metadata_options {
    http_tokens                 = "required" # IMDSv2
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.root_volume_gb
    encrypted   = true
  }

  tags = { Name = var.name }

  lifecycle {
    ignore_changes = [ami] # a new image is taken when the machine is replaced, not whenever there is one

    precondition {
      condition     = length(local.user_data) <= 16384
      error_message = "user data is ${length(local.user_data)} bytes long; AWS takes 16384."
    }
  }

  depends_on = [aws_iam_role_policy.session, aws_iam_role_policy.bucket, aws_iam_role_policy.secrets]
}
