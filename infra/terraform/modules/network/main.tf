# A network in which nothing can be reached from outside. The instance has a public address, but only to go out: a NAT
# gateway would cost more than everything else together. The database's subnets have no way out at all.

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394:Zones differ by region; the subnets keep the ones they were made in.
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"] # no local zones
  }
}

# Not every zone has every kind of machine: us-east-1 has one without t3.
data "aws_ec2_instance_type_offerings" "zones" {
  location_type = "availability-zone"

  filter {
    name   = "instance-type"
    values = [var.instance_type]
  }
}

locals {
  zones          = sort(data.aws_availability_zones.available.names)
  instance_zones = [for zone in local.zones : zone if contains(data.aws_ec2_instance_type_offerings.zones.locations, zone)]
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11:Flow logs cost by the GB; nothing may come in, and what goes out is a pipeline's own downloads.
  cidr_block           = var.cidr
  enable_dns_support   = true
  enable_dns_hostnames = true

  tags = { Name = var.name }
}

# The network's own default group is closed, so that what is made without a group can reach nothing.
resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.this.id
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id

  tags = { Name = var.name }
}

resource "aws_subnet" "public" {
  vpc_id                  = aws_vpc.this.id
  availability_zone       = local.instance_zones[0]
  cidr_block              = cidrsubnet(var.cidr, 8, 0)
  map_public_ip_on_launch = false # the instance asks for its own

  tags = { Name = "${var.name}-public" }

  lifecycle {
    ignore_changes = [availability_zone] # AWS may list a new zone first some day
  }
}

resource "aws_subnet" "private" {
  count = 2 # RDS wants subnets in two zones, also for one machine

  vpc_id            = aws_vpc.this.id
  availability_zone = distinct(concat(local.instance_zones, local.zones))[count.index]
  cidr_block        = cidrsubnet(var.cidr, 8, 10 + count.index)

  tags = { Name = "${var.name}-private-${count.index}" }

  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.this.id
  }

  tags = { Name = "${var.name}-public" }
}

resource "aws_route_table_association" "public" {
  subnet_id      = aws_subnet.public.id
  route_table_id = aws_route_table.public.id
}

resource "aws_route_table" "private" {
  vpc_id = aws_vpc.this.id

  tags = { Name = "${var.name}-private" }
}

resource "aws_route_table_association" "private" {
  count = length(aws_subnet.private)

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private.id
}

# Traffic to S3 stays inside AWS; a gateway endpoint is free. Its policy stays open, for Amazon Linux's packages come
# from buckets of AWS's own; what the instance may do is its role's matter.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.public.id]

  tags = { Name = "${var.name}-s3" }
}

# Both groups stand here, so that who may talk to whom is read in one place.
resource "aws_security_group" "instance" {
  #checkov:skip=CKV2_AWS_5:The compute module attaches it.
  name        = "${var.name}-instance"
  description = "The instance: nothing may come in; out go HTTPS and the database"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-instance" }
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.instance.id
  description       = "Session Manager, Parameter Store, S3, packages and the repository"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_egress_rule" "database" {
  security_group_id            = aws_security_group.instance.id
  description                  = "PostgreSQL"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
  referenced_security_group_id = aws_security_group.database.id
}

resource "aws_security_group" "database" {
  #checkov:skip=CKV2_AWS_5:The database module attaches it.
  name        = "${var.name}-database"
  description = "The database: PostgreSQL from the instance; nothing goes out"
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-database" }
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "PostgreSQL from the instance"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
  referenced_security_group_id = aws_security_group.instance.id
}
